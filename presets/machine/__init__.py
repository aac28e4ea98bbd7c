"""This machine: its GPUs, memory, driver and torch, and what a trainer gets of the shell."""
