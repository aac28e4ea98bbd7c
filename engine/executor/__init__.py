"""Both experts, run block by block under a memory plan."""
