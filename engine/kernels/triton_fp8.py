"""The Triton kernel behind `engine.wan.fp8_ops`, in a module of its own because Triton comes with CUDA alone."""

import triton
import triton.language as tl


@triton.jit
def rowwise_e4m3_kernel(x, q, scale, fold, columns, floor, FOLD: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per row: absmax, scale and quantize from one read. See `engine.wan.fp8_ops.rowwise_e4m3`."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    values = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    if FOLD:
        values *= tl.load(fold + at, mask=inside, other=0.0)
    s = tl.maximum(tl.max(tl.abs(values), 0), floor) / 448.0
    tl.store(scale + row, s)
    tl.store(q + row * columns + at, (values / s).to(tl.float8e4nv), mask=inside)
