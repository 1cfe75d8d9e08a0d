"""What a run will need and take, before it is started: memory, messages, time, money (`storyteller plan`)."""
