"""Clips and datasets as files: what they hold, whether they are whole, and the shapes they become."""
