"""One page that shows what a run was and what came of it, made from its records alone."""
