"""All that a client may know of the daemon: its messages, and how it is found, started and stopped."""
