"""Where documents come from; every source is a Source."""
