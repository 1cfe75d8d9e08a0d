"""What is wrong with a run before it begins: each check one function, each finding with its evidence and its fix."""
