"""What a run says and leaves: events, what they add up to, checkpoints, control files."""
