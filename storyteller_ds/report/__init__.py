"""One page that shows what a run was and what it came to, from its records alone."""
