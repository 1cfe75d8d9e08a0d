"""All measurements: run as scripts from a checkout, never installed."""
