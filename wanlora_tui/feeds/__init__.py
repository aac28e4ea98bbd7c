"""What the daemon's feed adds up to: jobs, one run, what was seen last. No widget."""
