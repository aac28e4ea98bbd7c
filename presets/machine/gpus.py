"""Facts of the NVIDIA GPUs, through NVML. Which of them a process may use is `visible_gpus`, the rest of the machine
`machine`.

Reading never fails: a GPU that cannot be read says why in its `error`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from presets.machine.visible_gpus import ORDER, VISIBLE, named_in, numbers_in


class GpuProcess(Struct, frozen=True, kw_only=True):
    """A process that holds memory on a GPU."""

    pid: int
    name: str  # "" when it belongs to another container or user
    memory: int  # bytes; 0 when the driver does not tell
    compute: bool = True  # or it only draws


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


class _NotThere(Exception):
    """CUDA_VISIBLE_DEVICES names what cannot be found: why, and what to do."""


Find = Callable[[], tuple[Any, Any]]  # (NVML's handle of a card, that of the slice which is meant or None)


def visible_gpus(environ: Mapping[str, str] | None = None, *, nvml: Any = None) -> list[str] | None:
    """The GPUs that `environ` makes visible, named so that any process of this machine finds them: by UUID where the
    driver tells it. None where neither the environment nor the driver says anything."""
    environ = os.environ if environ is None else environ
    names, (gpus, _) = named_in(environ), read_gpus(environ, (0, 0), nvml=nvml)
    if not gpus:
        return names
    return [gpu.uuid or name for gpu, name in zip(gpus, names or [str(gpu.index) for gpu in gpus], strict=True)]


def read_gpus(environ: Mapping[str, str], ram: tuple[int, int], *, nvml: Any = None) -> tuple[list[Gpu], str]:
    """(the GPUs that `environ` makes visible, why there are none and what to do). `ram`: (total, free) bytes of the
    host, which some GPUs share. `nvml` stands in for pynvml in tests."""
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as e:
        return [], _init_problem(nvml, e)
    try:
        count = nvml.nvmlDeviceGetCount()
        if count == 0:
            return (
                [],
                (
                    "the NVIDIA driver runs but sees no GPU: look at nvidia-smi, or start the container with GPU"
                    " access, docker run --gpus all"
                ),
            )
        blank = Gpu(index=0, driver=nvml.nvmlSystemGetDriverVersion(), cuda=_served_cuda(nvml))
        names = named_in(environ)
        if names is None:
            return [
                _read_gpu(nvml, msgspec.structs.replace(blank, index=i), ram, partial(_find, nvml, str(i), count))
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
            gpu = msgspec.structs.replace(blank, index=number)
            gpu = _read_gpu(nvml, gpu, ram, partial(_find, nvml, name, count, ordered=ordered))
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


def _read_gpu(nvml: Any, gpu: Gpu, ram: tuple[int, int], find: Find) -> Gpu:
    """Everything about one GPU. A failure keeps what was read before it and becomes the GPU's `error`."""
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
                gpu, vram_total=ram[0], vram_free=ram[1], note="GPU and CPU share their memory"
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
    computing = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    compute = {process.pid for process in computing}
    for found in (computing, nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)):
        for process in found:
            held[process.pid] = max(held.get(process.pid, 0), process.usedGpuMemory or 0)
    return sorted(
        (
            GpuProcess(pid=pid, name=_process_name(pid), memory=memory, compute=pid in compute)
            for pid, memory in held.items()
        ),
        key=lambda p: (-p.memory, p.pid),
    )


def _process_name(pid: int) -> str:
    import psutil  # a message to the daemon needs this module, and no first frame waits for names

    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return ""
