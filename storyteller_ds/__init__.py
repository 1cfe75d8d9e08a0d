"""Train small mixture-of-experts story models, and tell stories with them."""

__version__ = "0.1.0"
