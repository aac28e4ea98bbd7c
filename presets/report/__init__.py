"""What is left to read of a run: its page, and the measures of its previews that stand in it."""
