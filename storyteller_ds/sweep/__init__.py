"""Find the settings that learn best: many ordinary runs, compared in bits per byte on the same text."""
