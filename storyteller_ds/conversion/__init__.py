"""Models made from trained ones."""
