"""The Triton kernels behind `engine.wan.fp8_ops`, in a module of its own because Triton comes with CUDA alone."""

import torch
import triton
import triton.language as tl

TILE = 128  # of what is transposed: rows and columns
ROWS, WARPS = 1, (4, 16)  # of a program that quantizes: its rows, and its warps below and from 8192 columns on


@triton.jit
def rowwise_e4m3_kernel(  # type: ignore[no-untyped-def]
    x,
    q,
    scale,
    fold,
    rows,
    columns,
    floor,
    FOLD: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS rows a program: absmax, scale and quantize from one read, in two parts because a width as 5120 is no power
    of two. See `engine.wan.fp8_ops.rowwise_e4m3`."""
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    inside = tail < columns
    if FOLD:
        fold_head, fold_tail = tl.load(fold + head), tl.load(fold + tail, mask=inside, other=0.0)
    for i in tl.static_range(ROWS):
        row = tl.minimum(tl.program_id(0).to(tl.int64) * ROWS + i, rows - 1)  # the last one again, beyond the end
        start = row * columns
        a = tl.load(x + start + head).to(tl.float32)
        b = tl.load(x + start + tail, mask=inside, other=0.0).to(tl.float32)
        if FOLD:
            a *= fold_head
            b *= fold_tail
        most = tl.maximum(tl.maximum(tl.max(tl.abs(a), 0), tl.max(tl.abs(b), 0)), floor)
        inverse = 448.0 / most
        tl.store(scale + row, most / 448.0)
        tl.store(q + start + head, (a * inverse).to(q.dtype.element_ty))
        tl.store(q + start + tail, (b * inverse).to(q.dtype.element_ty), mask=inside)


@triton.jit
def transposed_kernel(x, y, rows, columns, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per tile of y = x^T, of single bytes."""
    tiles = tl.cdiv(columns, TILE_COLUMNS)
    row = tl.program_id(0) // tiles * TILE_ROWS + tl.arange(0, TILE_ROWS)
    column = tl.program_id(0) % tiles * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    values = tl.load(x + row.to(tl.int64)[:, None] * columns + column[None, :], mask=inside, other=0)
    tl.store(y + column.to(tl.int64)[:, None] * rows + row[None, :], tl.trans(values), mask=tl.trans(inside))


def rowwise_e4m3(
    x_MK: torch.Tensor,
    fold_K: torch.Tensor | None,
    floor: float,
    together: int = ROWS,
    warps: int | None = None,
    kind: torch.dtype = torch.float8_e4m3fn,
) -> tuple[torch.Tensor, torch.Tensor]:
    x = x_MK.contiguous()
    rows, columns = x.shape
    q = torch.empty(x.shape, dtype=kind, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    head, tail = parts(columns)
    rowwise_e4m3_kernel[(triton.cdiv(rows, together),)](
        x,
        q,
        scale,
        x if fold_K is None else fold_K.contiguous(),
        rows,
        columns,
        floor,
        FOLD=fold_K is not None,
        HEAD=head,
        TAIL=tail,
        ROWS=together,
        num_warps=warps or WARPS[head + tail > 8192],
    )
    return q, scale


def parts(columns: int) -> tuple[int, int]:
    """Two powers of two: the first at most `columns`, the second at least what is left of them."""
    head = 1 << (columns.bit_length() - 1)
    return head, 1 << max(0, columns - head - 1).bit_length()


def transposed(w_NK: torch.Tensor, tile: tuple[int, int] = (TILE, TILE), warps: int = 4) -> torch.Tensor:
    x = w_NK.contiguous()
    rows, columns = x.shape
    y = torch.empty((columns, rows), dtype=x.dtype, device=x.device)
    transposed_kernel[(triton.cdiv(rows, tile[0]) * triton.cdiv(columns, tile[1]),)](
        x.view(torch.int8),
        y.view(torch.int8),
        rows,
        columns,
        TILE_ROWS=tile[0],
        TILE_COLUMNS=tile[1],
        num_warps=warps,
    )
    return y
