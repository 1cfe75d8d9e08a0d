"""The one portable checkpoint format."""
