"""What happens besides the optimizer steps: records, progress, samples, checkpoints, checks."""
