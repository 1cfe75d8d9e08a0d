"""The optimizer: parameter groups, AdamW, Muon, learning-rate schedules."""
