"""What is queued, what runs, what it said."""
