"""What is wrong with a run before it begins. Each check is one function; each finding has its evidence and its fix."""
