"""The machine that jobs run on: whether their GPUs are free, and how GPUs, memory and disks do."""
