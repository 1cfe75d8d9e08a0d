"""What a model has learned: how well it predicts held-out stories, what its own are like, and what they copy."""
