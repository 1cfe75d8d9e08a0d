"""Proof on this machine that every topology computes the same thing."""
