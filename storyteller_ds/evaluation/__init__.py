"""What a model has learned: how well it predicts held-out stories, and what its own are like or copied from."""
