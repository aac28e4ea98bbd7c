"""Page-locked host memory of exactly the size asked for.

torch's own pinned allocator rounds up to a power of two: a 336 MiB block would take 512 MiB. So plain memory is
registered with CUDA instead.

What is put there is engine.weights.packed_blocks's and engine.executor.activation_offload's.
"""

import contextlib
import mmap
import weakref

import torch

from presets.errors import UserError
from presets.machine.machine import WSL, free_ram, is_wsl
from presets.text import human

LEAST = 2**28  # bytes of RAM left to everything else
FIX = "Close other programs, raise the container's memory limit, or use a smaller precision"
# The driver locks memory itself, so the limit of the shell (ulimit -l) plays no part.
WSL_FIX = f"{FIX}; memory= in .wslconfig gives WSL2 more"
HUGE = 2**21  # bytes of the pages that large buffers are made of where the kernel has them: 512 times fewer to lock
PIECE = 2**28  # bytes that a trial locks at a time
KEPT_BACK = 0.2  # of what a trial could lock, for all else that needs some


class HostMemoryRefused(UserError):
    """The system has no such memory, or would not page-lock it (`locking`): without that there is enough."""

    def __init__(self, what: str, *, where: str = "", fix: str = "", locking: bool = False) -> None:
        super().__init__(what, where=where, fix=fix)
        self.locking = locking


def host_buffer(size: int, *, pinned: bool) -> torch.Tensor:
    """A uint8 buffer of `size` bytes in host memory, page-locked when asked. Raises HostMemoryRefused."""
    if pinned:
        buffer = buffer_to_lock(size)
        if size:
            buffer.zero_()  # torch's threads make the pages; locking would have one make them all
            lock(buffer)
        return buffer
    try:
        return torch.empty(size, dtype=torch.uint8)
    except RuntimeError as e:  # what torch's own allocator raises
        raise _no_room(size) from e


def buffer_to_lock(size: int) -> torch.Tensor:
    """What `lock` is to be called with, later: what is locked before it is written has its pages made by the driver,
    one after the other. Pages of 4 KiB would take longer to make and to lock than a cached file takes to read. Raises
    HostMemoryRefused."""
    require_free(size)
    try:
        if size < HUGE:
            return torch.empty(size, dtype=torch.uint8)
        mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (RuntimeError, OSError) as e:  # what torch's own allocator and the system raise
        raise _no_room(size) from e
    with contextlib.suppress(OSError):  # a kernel built without huge pages: small ones do
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapped, dtype=torch.uint8)


def _no_room(size: int) -> HostMemoryRefused:
    return HostMemoryRefused(f"the system has no {human(size)} of RAM left", where="model.layer_offloading", fix=FIX)


def require_free(size: int) -> None:
    """Before the kernel ends a process for it, perhaps this one. Raises HostMemoryRefused."""
    if size > (free := free_ram() - LEAST):
        raise HostMemoryRefused(
            f"{human(size)} of RAM are needed, and {human(max(0, free))} are free",
            where="model.layer_offloading",
            fix=FIX,
        )


def lockable_bytes(most: int) -> int:
    """How much memory the system lets this process page-lock, by trying, up to `most`; all of it is let go again."""
    held: list[torch.Tensor] = []
    with contextlib.suppress(HostMemoryRefused):
        while len(held) * PIECE < most:
            held.append(host_buffer(PIECE, pinned=True))
        return most
    return int(len(held) * PIECE * (1 - KEPT_BACK))


def lock(buffer: torch.Tensor) -> None:
    """Page-lock host memory for as long as its storage lives. Raises HostMemoryRefused."""
    address, size = buffer.data_ptr(), buffer.numel()
    code = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
    if code != 0:
        _forget_refusal()
        wsl = is_wsl()
        what = f"the system would not lock {size / 2**20:.0f} MiB of RAM for the GPU (CUDA error {code})"
        raise HostMemoryRefused(
            f"{what}: {WSL}" if wsl else what,
            where="model.layer_offloading",
            fix=WSL_FIX if wsl else FIX,
            locking=True,
        )
    weakref.finalize(buffer.untyped_storage(), torch.cuda.cudart().cudaHostUnregister, address)


def _forget_refusal() -> None:
    """CUDA remembers a refusal, and would raise it at the next launch of a kernel."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
