"""Facts of this machine: its GPUs (`gpus`), RAM and cores as far as this process may use them, free disk."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
from msgspec import Struct

from presets.machine.gpus import Gpu, read_gpus
from presets.machine.torch_build import Build, Misfit, installed_build, misfit
from presets.machine.visible_gpus import NUMBERS, VISIBLE

WSL = "WSL2 lets a program lock only a part of its memory for the GPU, often half of it or far less"
PROC_VERSION = Path("/proc/version")
PROC_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


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
        cores=_cores(),
        disk_free=disk_free,
        disk_path=str(place),
        torch=installed_build(),
        wsl=is_wsl(),
    )


def is_wsl(version: Path = PROC_VERSION) -> bool:
    """Whether this is WSL2, by its kernel's name (`5.15.167.4-microsoft-standard-WSL2`). Containers on it have that
    kernel, too."""
    return "microsoft" in _content(version).lower()


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


def cgroup_memory(proc: Path = PROC_CGROUP, root: Path = CGROUP_ROOT) -> list[tuple[int, int]]:
    """(limit, used) in bytes of each memory control group that limits this process. Both versions of Linux control
    groups.

    Page cache does not count as used: the kernel drops it when memory is asked for.
    """
    limits = []
    for folder, version in _cgroups(proc, root, "memory"):
        names, prefix = (
            (("memory.max", "memory.current"), "")
            if version == 2
            else (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_")
        )
        limit, used = _number(folder / names[0]), _number(folder / names[1])
        if limit is not None and used is not None:
            cache = sum(_statistic(folder / "memory.stat", f"{prefix}{age}_file") for age in ("active", "inactive"))
            limits.append((limit, max(0, used - cache)))
    return limits


def _cores(proc: Path = PROC_CGROUP, root: Path = CGROUP_ROOT) -> int:
    """Cores this process may run on, a container's CPU quota counted in whole cores (rounded up)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, version in _cgroups(proc, root, "cpu"):
        if version == 2:
            words = _content(folder / "cpu.max").split()
            quota, period = (int(words[0]), int(words[1])) if len(words) == 2 and words[0].isdigit() else (0, 1)
        else:
            quota, period = _number(folder / "cpu.cfs_quota_us") or 0, _number(folder / "cpu.cfs_period_us") or 1
        if quota > 0:
            cores = min(cores, max(1, -(-quota // period)))
    return cores


def _cgroups(proc: Path, root: Path, controller: str) -> list[tuple[Path, int]]:
    """The folders of the control groups this process is in, innermost first, each with its version (1 or 2).

    Inside a container the path in /proc may be the host's, of which only the end is mounted: groups that are not there
    are passed over.
    """
    found = []
    for line in _content(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, top = 2, root
        elif controller in controllers.split(","):
            version, top = 1, root / controller
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        found += [(top / group, version) for group in (inside, *inside.parents) if (top / group).is_dir()]
    return list(dict.fromkeys(found))


def _content(path: Path) -> str:
    """A kernel file's text; "" when this kernel does not have it."""
    try:
        return path.read_text("ascii")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The number in a kernel file; None for "max" and for no such file."""
    text = _content(path).strip()
    return int(text) if text.isdigit() else None


def _statistic(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in _content(path).splitlines() if line.startswith(f"{name} ")), 0)
