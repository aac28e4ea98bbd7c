"""Page-locked host memory of exactly the size asked for.

torch's own pinned allocator rounds up to a power of two: a 336 MiB block would take 512 MiB. So plain memory is
registered with CUDA instead.
"""

import weakref

import torch

from presets.errors import UserError


class HostMemoryRefused(UserError):
    """The system would not page-lock so much memory."""


def host_buffer(size: int, *, pinned: bool) -> torch.Tensor:
    """A uint8 buffer of `size` bytes in host memory, page-locked when asked. Raises HostMemoryRefused."""
    buffer = torch.empty(size, dtype=torch.uint8)
    if pinned and size:
        _register(buffer)
    return buffer


def _register(buffer: torch.Tensor) -> None:
    address, size = buffer.data_ptr(), buffer.numel()
    code = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
    if code != 0:
        raise HostMemoryRefused(
            f"the system would not lock {size / 2**20:.0f} MiB of RAM for the GPU (CUDA error {code})", where="model.layer_offloading",
            fix="Close other programs, raise the memory limit (ulimit -l, the container's memory), or use a smaller precision",
        )  # fmt: skip
    weakref.finalize(buffer.untyped_storage(), torch.cuda.cudart().cudaHostUnregister, address)
