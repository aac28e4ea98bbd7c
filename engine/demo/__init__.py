"""The demo: clips, base and job of a first training, and what came of it. And the tiny base of random weights that
tests use."""
