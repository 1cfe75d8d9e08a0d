"""Everything that measures: run as scripts from a checkout, never installed."""
