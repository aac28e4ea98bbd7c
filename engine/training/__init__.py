"""The training loop, and all that acts on a run between two optimizer steps."""
