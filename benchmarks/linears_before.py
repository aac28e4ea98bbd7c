"""The kernel that quantized rows until 27 November 2026, for `benchmarks.linears` to time beside today's."""

import torch
import triton
import triton.language as tl


@triton.jit
def kernel(x, q, scale, fold, columns, floor, FOLD: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    values = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    if FOLD:
        values *= tl.load(fold + at, mask=inside, other=0.0)
    s = tl.maximum(tl.max(tl.abs(values), 0), floor) / 448.0
    tl.store(scale + row, s)
    tl.store(q + row * columns + at, (values / s).to(tl.float8e4nv), mask=inside)


def rowwise_e4m3(x: torch.Tensor, fold_K: torch.Tensor | None, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = x.shape
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    block = 1 << (columns - 1).bit_length()
    kernel[(rows,)](
        x,
        q,
        scale,
        x if fold_K is None else fold_K,
        columns,
        floor,
        FOLD=fold_K is not None,
        BLOCK=block,
        num_warps=8 if block <= 8192 else 16,
    )
    return q, scale
