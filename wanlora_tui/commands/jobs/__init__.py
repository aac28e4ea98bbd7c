"""Commands that hand jobs to the daemon, act on them and follow them."""
