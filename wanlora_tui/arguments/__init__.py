"""The options of every command, a module per group. Handlers are named as text, and imported when they run."""
