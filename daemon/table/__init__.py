"""The job table on disk, in SQLite, and what becomes of it on a disk that is full or damaged."""
