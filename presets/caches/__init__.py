"""The user's caches as files: what they hold, and making room."""
