"""The terminal itself: what it is asked at the start, its answers kept apart from keys, how little is drawn on it at a
time, and leaving it as it was found."""
