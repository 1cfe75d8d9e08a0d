"""Whether every topology computes the same on this machine: a few fp32 steps of a small model on each."""
