"""Page-locked host memory of exactly the size asked for.

torch's own pinned allocator rounds up to a power of two: a 336 MiB block would take 512 MiB. So plain memory is
registered with CUDA instead.

What is put there is engine.weights.packed_blocks's and engine.executor.activation_offload's.
"""

import contextlib
import weakref

import torch

from presets.errors import UserError
from presets.machine.machine import free_ram
from presets.text import human

LEAST = 2**28  # bytes of RAM left to everything else
FIX = "Close other programs, raise the memory limit (ulimit -l, the container's memory), or use a smaller precision"


class HostMemoryRefused(UserError):
    """The system would not page-lock so much memory."""


def host_buffer(size: int, *, pinned: bool) -> torch.Tensor:
    """A uint8 buffer of `size` bytes in host memory, page-locked when asked. Raises HostMemoryRefused."""
    if pinned and size > (free := free_ram() - LEAST):  # before the kernel ends a process for it, perhaps this one
        raise HostMemoryRefused(
            f"{human(size)} of RAM are needed, and {human(max(0, free))} are free",
            where="model.layer_offloading",
            fix=FIX,
        )
    try:
        buffer = torch.empty(size, dtype=torch.uint8)
    except RuntimeError as e:  # what torch's own allocator raises
        raise HostMemoryRefused(
            f"the system has no {human(size)} of RAM left", where="model.layer_offloading", fix=FIX
        ) from e
    if pinned and size:
        _register(buffer)
    return buffer


def _register(buffer: torch.Tensor) -> None:
    address, size = buffer.data_ptr(), buffer.numel()
    code = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
    if code != 0:
        # CUDA remembers the refusal, and would raise it at the next launch of a kernel
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda")
        raise HostMemoryRefused(
            f"the system would not lock {size / 2**20:.0f} MiB of RAM for the GPU (CUDA error {code})",
            where="model.layer_offloading",
            fix=FIX,
        )
    weakref.finalize(buffer.untyped_storage(), torch.cuda.cudart().cudaHostUnregister, address)
