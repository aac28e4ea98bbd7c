"""Which job runs when: the state of every job as a pure machine, without clock, files or processes."""
