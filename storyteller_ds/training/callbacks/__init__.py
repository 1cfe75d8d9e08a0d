"""What happens beside the optimizer steps: records, progress, samples, checkpoints, checks."""
