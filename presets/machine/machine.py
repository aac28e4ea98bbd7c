"""Facts of this machine: its GPUs (`gpus`), RAM and cores as far as this process may use them, free disk."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from msgspec import Struct

from presets.machine.gpus import Gpu, read_gpus
from presets.machine.limits import cgroup_memory, content, cores
from presets.machine.torch_build import Build, Misfit, installed_build, misfit
from presets.machine.visible_gpus import NUMBERS, VISIBLE

WSL = "WSL2 lets a program lock only a part of its memory for the GPU, often half of it or far less"
PROC_VERSION = Path("/proc/version")


class Machine(Struct, frozen=True, kw_only=True):
    gpus: list[Gpu]
    gpu_problem: str  # why `gpus` is empty, and what to do; "" otherwise
    visible: str | None = None  # CUDA_VISIBLE_DEVICES, where it is set
    ram_total: int  # bytes this process may use: a container's limit counts
    ram_free: int  # bytes available without swapping
    cores: int  # CPU cores this process may use
    disk_free: int  # bytes
    disk_path: str  # the folder that disk_free is about: the nearest that exists
    torch: Build | None = None  # the one that is installed
    wsl: bool = False  # Linux inside Windows, which lets a program lock little of its memory for the GPU

    @property
    def torch_misfit(self) -> Misfit | None:
        """Why the installed torch cannot use the GPUs here, as far as is known without asking it."""
        return misfit(self.torch, self.gpus[0].driver, cuda=self.gpus[0].cuda) if self.gpus and self.torch else None


def read_machine(disk_path: Path, *, nvml: Any = None, environ: Mapping[str, str] | None = None) -> Machine:
    """Facts of this machine, of the GPUs that `environ` (this process's by default) makes visible, and of the disk that
    holds `disk_path` (which need not exist). `nvml` stands in for pynvml in tests."""
    environ = os.environ if environ is None else environ
    ram_total, ram_free = _ram()
    gpus, problem = read_gpus(environ, (ram_total, ram_free), nvml=nvml)
    place, disk_free = _disk(disk_path.absolute())
    return Machine(
        gpus=gpus,
        gpu_problem=problem,
        visible=None if NUMBERS in environ else environ.get(VISIBLE),
        ram_total=ram_total,
        ram_free=ram_free,
        cores=cores(),
        disk_free=disk_free,
        disk_path=str(place),
        torch=installed_build(),
        wsl=is_wsl(),
    )


def is_wsl(version: Path = PROC_VERSION) -> bool:
    """Whether this is WSL2, by its kernel's name (`5.15.167.4-microsoft-standard-WSL2`). Containers on it have that
    kernel, too."""
    return "microsoft" in content(version).lower()


def _disk(path: Path) -> tuple[Path, int]:
    """The nearest of `path` and its parents that can be asked, and the bytes free for us there."""
    for place in (path, *path.parents):
        try:
            return place, shutil.disk_usage(place).free
        except OSError:
            continue
    raise AssertionError("not even the root folder has a size")


def free_ram() -> int:
    """Bytes this process may still take: what the machine has available, and its control groups allow."""
    return _ram()[1]


def _ram() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    limits = cgroup_memory()
    return min([memory.total, *(limit for limit, _ in limits)]), min(
        [memory.available, *(max(0, limit - used) for limit, used in limits)]
    )
