"""The widgets: each renders what it is handed and keeps nothing else."""
