"""The device a run works on, and torch's settings for it.

How much memory a plan may take of it is engine.memory.planning's.
"""

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from presets.errors import UserError
from presets.machine.machine import Machine
from presets.machine.torch_build import Misfit

# one of the two values with which torch multiplies in a fixed order
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
# of one compiled function: experts and blocks of different ranks (presets.job.lora_layers.MOST_LAYOUTS), chunks,
# buckets. Beyond torch's own 8 it would run eager without a word
VARIANTS = 128

SHORT = re.compile(
    r"(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED when calling .cublasCreate|out of memory",
    re.IGNORECASE,
)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Inside, cuBLAS, cuDNN and Triton finding no memory raise torch.OutOfMemoryError, as torch's own allocator
    does."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as e:
        if SHORT.search(str(e)):
            raise torch.OutOfMemoryError(str(e)) from e
        raise


@contextmanager
def fixed_order(on: bool = True) -> Iterator[None]:
    """Inside, torch's GPU kernels add in a fixed order, backward passes included: the same inputs give the same bits.
    An operation that cannot raises RuntimeError. The setting is the process's, not the thread's."""
    if not on:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # it costs a pass over every new tensor, and nothing here reads what it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def compile_alike() -> None:
    """From now on torch.compile takes no choice by timing kernels that add in other orders: what is compiled anew, its
    cache lost, gives the same bits. `fixed_order` has it leave the other such choices out by itself."""
    from torch._inductor import config

    config.dynamic_scale_rblock = False  # else the faster of two sizes of a reduction
    config.shape_padding = False  # else products with padding where that is faster


def open_device(name: str | None = None, *, vram: int | None = None, sharers: int = 1) -> torch.device:
    """The device named, or the first GPU, or the CPU. `vram` caps what torch may take of a GPU, in bytes; `sharers`:
    processes of this host that each open a GPU of their own. To be called before anything is multiplied there. Raises
    torch.OutOfMemoryError on a GPU that has no room at all."""
    device = torch.device(name or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        from torch._dynamo import config  # seconds to import, and nothing is compiled elsewhere
        from torch._inductor import config as inductor

        config.recompile_limit = VARIANTS
        # the compiler's processes, up to 32 on a host, end once a minute has passed without work for them
        inductor.compile_threads = max(1, (inductor.compile_threads or 1) // sharers)
        inductor.quiesce_async_compile_pool = True
        # Segments that grow: clips of several sizes leave no holes between them that nothing else fits into.
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
        if vram is not None:
            torch.cuda.set_per_process_memory_fraction(
                min(1.0, vram / torch.cuda.get_device_properties(device).total_memory), device
            )
        with memory_errors():
            products_in_order(device)
    return device


def require_gpu(device: torch.device, machine: Machine) -> None:
    """For what is too much for the CPU. Raises UserError where torch has not found a GPU: why, and what would help."""
    if device.type == "cuda":
        return
    if not machine.gpus:
        wrong = Misfit(machine.gpu_problem, "Run this on a machine with an NVIDIA GPU")
    else:
        wrong = machine.torch_misfit or Misfit(
            f"torch {torch.__version__} says: {_refusal()}", "See what is wrong with: wanlora doctor"
        )
    raise UserError(
        f"torch does not see the GPU, and the CPU is too slow for this base model: {wrong.message}",
        where="job.gpus",
        fix=wrong.fix,
    )


def _refusal() -> str:
    """torch's own words for why it has no GPU."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as e:
        return str(e).splitlines()[0].rstrip(".")
    return "it gives no reason"


def products_in_order(device: torch.device) -> None:
    """Have torch multiply in a fixed order where `fixed_order` asks for it: it wants an environment variable to be set
    before its first product, of which this is one. (What cuBLAS wants is a buffer of its own for each stream, by the
    part "Results reproducibility" of NVIDIA's manual, and torch gives it that in any case.)

    The variable then goes. torch remembers that it was there (`alertCuBLASConfigNotDeterministic`, ATen/Context.cpp),
    but 2.11 at least also reads it before every product, by a regular expression built anew
    (`parseChosenWorkspaceSize`, ATen/cuda/CublasHandlePool.cpp): short clips waited for that. Without it that torch
    makes the buffers as large as it does by itself: 32 MiB on Hopper, as with it, and 8 MiB on other cards.
    """
    name, value = CUBLAS_WORKSPACE
    os.environ[name] = value
    one = torch.ones(2, 2, device=device)
    with fixed_order():
        one @ one
        del os.environ[name]
        try:
            one @ one
        except RuntimeError as e:
            if name not in str(e):
                raise
            os.environ[name] = value  # a torch that asks every time


def release(device: torch.device) -> None:
    """Give the memory back of what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
