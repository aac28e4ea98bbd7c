"""The terminal itself: what it is asked at the start, its answers kept apart from keys, and leaving it as it was
found."""
