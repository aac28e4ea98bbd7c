"""torch as where it is not installed, for commands of a test that ask for more than it wants to know: `wanlora doctor`
imports torch in a process of its own, which takes seconds. It comes before the real one on their path."""

raise ImportError("torch is not installed")
