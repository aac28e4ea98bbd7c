"""What a run's own events say about it."""
