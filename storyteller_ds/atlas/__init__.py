"""What the experts of a mixture do: what they serve, what goes without them, and which of them can go."""
