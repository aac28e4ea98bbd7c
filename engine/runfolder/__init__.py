"""The run folder on disk: checkpoints, events, control files, and where an attempt begins."""
