"""The files in a run folder and how they are read: names, metrics, samples."""
