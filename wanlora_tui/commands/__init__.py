"""The commands of `wanlora`, one module per group. Each handler takes the parsed arguments and returns the exit
code."""
