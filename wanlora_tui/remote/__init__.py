"""A machine reached through ssh: one connection of our own to it, kept up, and what runs, is read and is forwarded over
it."""
