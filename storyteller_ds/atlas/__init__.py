"""What the experts of a mixture do: which tokens they serve, what is lost without them, and which can be removed."""
