"""Another machine's figures, for every process whose path begins with this folder: free disk, memory, cores and host
name, drawn from the seed in its environment. The suite's workers and all that they start see the same ones, as on one
machine; each worker sees others. Python imports this module by its name at every start.

It imports little, and psutil not at all: whoever does gets the memory with it.
"""

import os
import random
import shutil
import socket
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SEED = "WANLORA_FIGURES"
GIB = 2**30
_draws = random.Random(f"{os.environ.get(SEED)} {os.environ.get('PYTEST_XDIST_WORKER')}")
# Digits before the point change the width of a text, so each number of them is as likely. Never less than a job of the
# tests needs.
FREE = int(_draws.choice((30, 100, 1000, 10_000)) * _draws.uniform(1, 3) * GIB)
TOTAL = int(FREE * _draws.uniform(1.1, 4))
MEMORY = int(_draws.choice((16, 64, 128, 512, 1024)) * _draws.uniform(0.9, 1) * GIB)
AVAILABLE = _draws.uniform(0.5, 0.95)  # of it
CORES = _draws.choice((1, 2, 3, 8, 16, 64, 128))
HOST = "h" * _draws.choice((1, 5, 20, 60))
_disk_usage = shutil.disk_usage


def disk_usage(path: Any) -> Any:
    """Others write to the disk meanwhile: no two answers are alike."""
    found = _disk_usage(path)  # its errors
    free = FREE - random.randrange(GIB // 10)
    return type(found)(TOTAL, TOTAL - free, free)


class _Memory:
    """Finds psutil as it would be found, and gives it another memory."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name != "psutil":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            self._patch(spec)
        return spec

    @staticmethod
    def _patch(spec: ModuleSpec) -> None:
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            real = module.virtual_memory

            def virtual_memory() -> Any:
                available = int(MEMORY * AVAILABLE) - random.randrange(GIB // 10)
                return real()._replace(total=MEMORY, available=available, percent=round(100 * (1 - AVAILABLE), 1))

            module.virtual_memory = virtual_memory

        loader.exec_module = exec_module


if os.environ.get(SEED):
    shutil.disk_usage = disk_usage
    os.cpu_count = lambda: CORES
    if hasattr(os, "sched_getaffinity"):
        os.sched_getaffinity = lambda pid: set(range(CORES))
    socket.gethostname = lambda: HOST
    sys.meta_path.insert(0, _Memory())  # type: ignore[arg-type]
