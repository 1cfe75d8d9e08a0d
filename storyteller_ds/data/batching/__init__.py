"""From token shards to the batches of each rank."""
