"""The device a run works on, and torch's settings for it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

VARIANTS = 64  # of one compiled function: experts of different ranks, chunks, buckets. Beyond torch's own 8 it would run eager without a word


SHORT = re.compile(r"(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|out of memory", re.IGNORECASE)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Inside, cuBLAS, cuDNN and Triton finding no memory raise torch.OutOfMemoryError, as torch's own allocator does."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as e:
        if SHORT.search(str(e)):
            raise torch.OutOfMemoryError(str(e)) from e
        raise


def open_device(name: str | None = None, *, vram: int | None = None) -> torch.device:
    """The device named, or the first GPU, or the CPU. `vram` caps what torch may take of a GPU, in bytes."""
    device = torch.device(name or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        from torch._dynamo import config  # seconds to import, and nothing is compiled elsewhere

        config.recompile_limit = VARIANTS
        # Segments that grow: clips of several sizes leave no holes between them that nothing else fits into.
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
        if vram is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, vram / torch.cuda.get_device_properties(device).total_memory), device)
    return device
