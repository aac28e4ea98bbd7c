"""Facts of this machine: GPUs through NVML, RAM and cores as far as this process may use them, free disk.

Reading never fails: a GPU that cannot be read says why in its `error`, a machine without GPUs in `gpu_problem`.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import psutil
from msgspec import Struct

from presets.machine.torch_build import Build, Misfit, installed_build, misfit
from presets.machine.visible_gpus import NUMBERS, ORDER, VISIBLE, named_in, numbers_in

# major compute capabilities (Hopper, Blackwell of data centres) that the optional package flash-attn-4 has both
# directions for
FLASH4_CARDS = (9, 10)
PROC_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


class GpuProcess(Struct, frozen=True, kw_only=True):
    """A process that holds memory on a GPU."""

    pid: int
    name: str  # "" when it belongs to another container or user
    memory: int  # bytes; 0 when the driver does not tell


class Gpu(Struct, frozen=True, kw_only=True):
    """One card, or the slice of it that a CUDA program would get when MIG divides it."""

    # in job.gpus: within CUDA_VISIBLE_DEVICES where that is set, else in PCI bus order (presets.machine.visible_gpus)
    index: int
    name: str = ""
    uuid: str = ""  # as CUDA_VISIBLE_DEVICES takes it; the slice's under MIG
    capability: tuple[int, int] = (0, 0)  # compute capability
    vram_total: int = 0  # bytes
    vram_free: int = 0
    driver: str = ""
    cuda: int = 0  # major version of the CUDA that the driver's library says it serves; 0: unknown
    processes: list[GpuProcess] = msgspec.field(default_factory=list)
    mig: bool = False
    error: str = ""  # why this GPU cannot be used, and what to do
    note: str = ""  # what could not be read although the GPU works


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

    @property
    def torch_misfit(self) -> Misfit | None:
        """Why the installed torch cannot use the GPUs here, as far as can be told without asking it."""
        return misfit(self.torch, self.gpus[0].driver, cuda=self.gpus[0].cuda) if self.gpus and self.torch else None


class _NotThere(Exception):
    """CUDA_VISIBLE_DEVICES names what cannot be found: why, and what to do."""


Find = Callable[[], tuple[Any, Any]]  # (NVML's handle of a card, that of the slice which is meant or None)


def read_machine(disk_path: Path, *, nvml: Any = None, environ: Mapping[str, str] | None = None) -> Machine:
    """Facts of this machine, of the GPUs that `environ` (this process's by default) makes visible, and of the disk that
    holds `disk_path` (which need not exist). `nvml` stands in for pynvml in tests."""
    environ = os.environ if environ is None else environ
    ram_total, ram_free = _ram()
    gpus, problem = _read_gpus(nvml, ram_total, ram_free, environ)
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
    )


def visible_gpus(environ: Mapping[str, str] | None = None, *, nvml: Any = None) -> list[str] | None:
    """The GPUs that `environ` makes visible, named so that any process of this machine finds them: by UUID where the
    driver tells it. None where neither the environment nor the driver says anything."""
    environ = os.environ if environ is None else environ
    names, (gpus, _) = named_in(environ), _read_gpus(nvml, *_ram(), environ)
    if not gpus:
        return names
    return [gpu.uuid or name for gpu, name in zip(gpus, names or [str(gpu.index) for gpu in gpus], strict=True)]


def _read_gpus(nvml: Any, ram_total: int, ram_free: int, environ: Mapping[str, str]) -> tuple[list[Gpu], str]:
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as e:
        return [], _init_problem(nvml, e)
    try:
        driver = nvml.nvmlSystemGetDriverVersion()
        count = nvml.nvmlDeviceGetCount()
        if count == 0:
            return (
                [],
                (
                    "the NVIDIA driver runs but sees no GPU: look at nvidia-smi, or start the container with GPU"
                    " access, docker run --gpus all"
                ),
            )
        cuda = _served_cuda(nvml)
        names = named_in(environ)
        if names is None:
            return [
                _read_gpu(nvml, i, driver, cuda, ram_total, ram_free, partial(_find, nvml, str(i), count))
                for i in range(count)
            ], ""
        if not names:
            return (
                [],
                (
                    f"{VISIBLE} is set to {environ[VISIBLE]!r} and hides all {count} GPU{'s' if count > 1 else ''}:"
                    " unset it, or name GPUs in it (nvidia-smi -L lists them)"
                ),
            )
        ordered = environ.get(ORDER) != "FASTEST_FIRST" or len({_name(nvml, i) for i in range(count)}) == 1
        gpus: list[Gpu] = []
        for number, name in zip(numbers_in(environ, len(names)), names, strict=True):
            gpu = _read_gpu(
                nvml, number, driver, cuda, ram_total, ram_free, partial(_find, nvml, name, count, ordered=ordered)
            )
            if gpu.uuid and any(gpu.uuid == other.uuid for other in gpus):
                gpu = msgspec.structs.replace(
                    gpu,
                    error=(
                        f"{VISIBLE}={environ[VISIBLE]} names it twice, and CUDA then shows nothing: name each GPU once"
                    ),
                )
            gpus.append(gpu if gpu.uuid else msgspec.structs.replace(gpu, uuid=name))
        return gpus, ""
    except nvml.NVMLError as e:
        return (
            [],
            (
                f"the NVIDIA driver stopped answering, {_text(e)}: look at nvidia-smi and the kernel log, a reboot"
                " fixes most causes"
            ),
        )
    finally:
        with suppress(nvml.NVMLError):  # a driver in trouble may not even say goodbye
            nvml.nvmlShutdown()


def _find(nvml: Any, name: str, count: int, *, ordered: bool = True) -> tuple[Any, Any]:
    """The card, and the slice of it, that a name in CUDA_VISIBLE_DEVICES means. Raises _NotThere, NVMLError."""
    if name.isdecimal():
        if not ordered:
            raise _NotThere(
                f"{ORDER}=FASTEST_FIRST counts unlike cards in an order that only CUDA knows, so {name} in {VISIBLE}"
                f" may be any: set {ORDER}=PCI_BUS_ID, or name the GPU by its UUID (nvidia-smi -L)"
            )
        if int(name) < count:
            return nvml.nvmlDeviceGetHandleByIndex(int(name)), None
        found = []
    elif name.startswith("MIG-"):
        found = [
            (card, part)
            for card in _cards(nvml, count)
            for part in _slices(nvml, card)
            if nvml.nvmlDeviceGetUUID(part).startswith(name)
        ]
        if not found:
            with suppress(nvml.NVMLError):  # a container may hide the list of slices and give one of them
                part = nvml.nvmlDeviceGetHandleByUUID(name)
                found = [(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part), part)]
    elif name.startswith("GPU-"):
        found = [(card, None) for card in _cards(nvml, count) if nvml.nvmlDeviceGetUUID(card).startswith(name)]
    else:
        found = []
    if len(found) == 1:
        return found[0]
    raise _NotThere(
        f"{VISIBLE} names {name}, and {'several GPUs begin so' if found else 'there is no such GPU'}: see what is there"
        " with nvidia-smi -L"
    )


def _cards(nvml: Any, count: int) -> Iterator[Any]:
    """Those that answer."""
    for i in range(count):
        with suppress(nvml.NVMLError):
            card = nvml.nvmlDeviceGetHandleByIndex(i)
            nvml.nvmlDeviceGetUUID(card)
            yield card


def _name(nvml: Any, index: int) -> str:
    try:
        return str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(index)))
    except nvml.NVMLError:
        return ""


def _init_problem(nvml: Any, error: Exception) -> str:
    if isinstance(error, nvml.NVMLError_LibraryNotFound):
        return (
            "there is no NVIDIA driver on this machine: install it, or start the container with GPU access, docker run"
            " --gpus all"
        )
    if isinstance(error, nvml.NVMLError_DriverNotLoaded):
        return "the NVIDIA driver is installed but not loaded: try modprobe nvidia, or reboot"
    if isinstance(error, nvml.NVMLError_LibRmVersionMismatch):
        return "the NVIDIA driver was updated and the old one is still loaded: reboot"
    if isinstance(error, nvml.NVMLError_NoPermission):
        return "this user may not use the NVIDIA driver: check the rights of /dev/nvidia*"
    return f"the NVIDIA driver does not answer, {_text(error)}: look at nvidia-smi"


def _text(error: Exception) -> str:
    return str(error).lower()


def _served_cuda(nvml: Any) -> int:
    try:
        return int(nvml.nvmlSystemGetCudaDriverVersion_v2()) // 1000  # 12040 is CUDA 12.4
    except (nvml.NVMLError, AttributeError):  # no libcuda here, or a driver or binding that knows no such question
        return 0


def _read_gpu(nvml: Any, index: int, driver: str, cuda: int, ram_total: int, ram_free: int, find: Find) -> Gpu:
    """Everything about one GPU. A failure keeps what was read before it and becomes the GPU's `error`."""
    gpu = Gpu(index=index, driver=driver, cuda=cuda)
    try:
        handle, part = find()
        gpu = msgspec.structs.replace(
            gpu,
            name=nvml.nvmlDeviceGetName(handle),
            uuid=nvml.nvmlDeviceGetUUID(handle),
            capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        )
        if part is not None or _mig_enabled(nvml, handle):
            gpu = msgspec.structs.replace(gpu, mig=True)
            # a CUDA program that names the card gets its first slice
            handle = part if part is not None else next(_slices(nvml, handle), None)
            if handle is None:
                return msgspec.structs.replace(
                    gpu,
                    error=(
                        "MIG is on and no slice was made: make one (nvidia-smi mig -cgi ... -C) or turn MIG off"
                        " (nvidia-smi -mig 0)"
                    ),
                )
            gpu = msgspec.structs.replace(gpu, name=nvml.nvmlDeviceGetName(handle), uuid=nvml.nvmlDeviceGetUUID(handle))
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            gpu = msgspec.structs.replace(gpu, vram_total=int(memory.total), vram_free=int(memory.free))
        except nvml.NVMLError_NotSupported:  # GPU and CPU share one memory (DGX Spark, Jetson)
            gpu = msgspec.structs.replace(
                gpu, vram_total=ram_total, vram_free=ram_free, note="GPU and CPU share their memory"
            )
        try:
            gpu = msgspec.structs.replace(gpu, processes=_processes(nvml, handle))
        except (nvml.NVMLError_NoPermission, nvml.NVMLError_NotSupported) as e:
            gpu = msgspec.structs.replace(
                gpu, note="; ".join(filter(None, (gpu.note, f"who holds its memory cannot be read ({_text(e)})")))
            )
    except _NotThere as e:
        gpu = msgspec.structs.replace(gpu, error=str(e))
    except nvml.NVMLError_GpuIsLost:
        gpu = msgspec.structs.replace(
            gpu,
            error=(
                "the driver lost this GPU, it fell off the bus: reboot, and if that happens again check power and"
                " cooling"
            ),
        )
    except nvml.NVMLError as e:
        gpu = msgspec.structs.replace(gpu, error=f"it cannot be read, {_text(e)}: look at nvidia-smi")
    return gpu


def _mig_enabled(nvml: Any, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):  # cards and drivers that know no MIG
        return False


def _slices(nvml: Any, handle: Any) -> Iterator[Any]:
    """The slices that MIG has cut from a card."""
    if not _mig_enabled(nvml, handle):
        return
    for i in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(nvml.NVMLError_NotFound):  # places need not be filled from the first on
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i)


def _processes(nvml: Any, handle: Any) -> list[GpuProcess]:
    """Who holds memory, most first. One program may use the GPU for computing and for drawing."""
    held: dict[int, int] = {}
    for found in (
        nvml.nvmlDeviceGetComputeRunningProcesses(handle),
        nvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
    ):
        for process in found:
            held[process.pid] = max(held.get(process.pid, 0), process.usedGpuMemory or 0)
    return sorted(
        (GpuProcess(pid=pid, name=_process_name(pid), memory=memory) for pid, memory in held.items()),
        key=lambda p: (-p.memory, p.pid),
    )


def _process_name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return ""


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
