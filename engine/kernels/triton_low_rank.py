"""The Triton kernels behind `engine.wan.low_rank`, in a module of its own because Triton comes with CUDA alone."""

import torch
import triton
import triton.language as tl

ROWS, COLUMNS, WARPS = 64, 64, 4  # the fastest on an H100, or as fast as that (benchmarks.linears)
STEP = 64  # ranks at a time, at most


@triton.jit
def low_rank_kernel(  # type: ignore[no-untyped-def]
    g,
    y,
    ax,
    b,
    out,
    rows,
    columns,
    ranks,
    GELU: tl.constexpr,
    GRADIENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """One program per tile of y + ax B^T, or of its GELU, or (GRADIENT) of g times the slope of the GELU there."""
    tiles = tl.cdiv(columns, COLUMNS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    at = row[:, None] * columns + column[None, :]
    values = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    for first in range(0, ranks, STEP):
        rank = first + tl.arange(0, STEP)
        left = tl.load(
            ax + row[:, None] * ranks + rank[None, :], mask=(row[:, None] < rows) & (rank[None, :] < ranks), other=0.0
        )
        right = tl.load(
            b + column[None, :] * ranks + rank[:, None],
            mask=(column[None, :] < columns) & (rank[:, None] < ranks),
            other=0.0,
        )
        values = tl.dot(left, right, values, input_precision="ieee")
    if GELU:  # (1 + tanh z) / 2 is the logistic function of 2 z
        z = 1.5957691216057308 * (values + 0.044715 * values * values * values)
        half = 1.0 / (1.0 + tl.exp(-z))
        if GRADIENT:
            slope = 1.5957691216057308 * (1.0 + 0.134145 * values * values)
            grad = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
            values = grad * (half + values * half * (1.0 - half) * slope)
        else:
            values = values * half
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


def low_rank_sum(
    y_MN: torch.Tensor,
    ax_MR: torch.Tensor,
    b_NR: torch.Tensor,
    gelu: bool,
    tile: tuple[int, int] = (ROWS, COLUMNS),
    warps: int = WARPS,
) -> torch.Tensor:
    return _run(y_MN, y_MN, ax_MR, b_NR, gelu, False, tile, warps)


def low_rank_gelu_gradient(
    g_MN: torch.Tensor,
    y_MN: torch.Tensor,
    ax_MR: torch.Tensor,
    b_NR: torch.Tensor,
    tile: tuple[int, int] = (ROWS, COLUMNS),
    warps: int = WARPS,
) -> torch.Tensor:
    return _run(g_MN, y_MN, ax_MR, b_NR, True, True, tile, warps)


def _run(
    g_MN: torch.Tensor,
    y_MN: torch.Tensor,
    ax_MR: torch.Tensor,
    b_NR: torch.Tensor,
    gelu: bool,
    gradient: bool,
    tile: tuple[int, int],
    warps: int,
) -> torch.Tensor:
    g, y, ax, b = g_MN.contiguous(), y_MN.contiguous(), ax_MR.contiguous(), b_NR.contiguous()
    (rows, columns), ranks = y.shape, b.shape[1]
    out = torch.empty_like(y)
    low_rank_kernel[(triton.cdiv(rows, tile[0]) * triton.cdiv(columns, tile[1]),)](
        g,
        y,
        ax,
        b,
        out,
        rows,
        columns,
        ranks,
        GELU=gelu,
        GRADIENT=gradient,
        ROWS=tile[0],
        COLUMNS=tile[1],
        STEP=step_of(ranks),
        num_warps=warps,
    )
    return out


def step_of(ranks: int) -> int:
    """A power of two that a matrix unit takes."""
    return min(STEP, max(16, 1 << (ranks - 1).bit_length()))
