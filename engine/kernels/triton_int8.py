"""The Triton kernels behind `engine.wan.int8_ops`, in a module of its own because Triton comes with CUDA alone.

The product fits the 99 KB of shared memory of compute capability 8.6, 8.9 and 12.0 with every tile. Its sums are
integers, so all tiles give the same bits, and the fastest may be found anew on each card.

M rows, K columns (of the contraction), N outputs.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

UNIT = tl.constexpr(16)  # a rotation goes through the matrix unit in two factors of at most so many columns
SQUARE = tl.constexpr(256)
LEAST = 256  # columns of a program that rotates rows


class Tile(NamedTuple):
    rows: int
    outputs: int
    columns: int  # of the contraction at a time
    warps: int
    stages: int  # loads ahead


# As Triton 3.8 compiles them: 48 to 96 KB of shared memory on 8.x and 12.0, 64 to 147 KB on 9.0; all but the last keep
# everything in registers on 8.6
TILES = (
    Tile(128, 128, 64, 8, 4),
    Tile(128, 128, 128, 8, 3),
    Tile(64, 256, 64, 8, 4),
    Tile(128, 256, 128, 8, 3),
)
GROUP = 8  # tiles of rows that share a tile of outputs while it is in the cache


@triton.jit
def _signs(side):  # type: ignore[no-untyped-def]
    """(16, 16): Hadamard matrices of `side` (up to 16, a power of two) along the diagonal."""
    i = tl.arange(0, UNIT)
    both = i[:, None] & i[None, :] & (side - 1)
    odd = both ^ (both >> 2)
    odd = (odd ^ (odd >> 1)) & 1
    same = (i[:, None] & (UNIT - side)) == (i[None, :] & (UNIT - side))
    return tl.where(same, 1.0 - 2.0 * odd.to(tl.float32), 0.0)


@triton.jit
def _turned(values, side, norm, LENGTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """A row as (LENGTH / 16, 16), each run of `side` columns of it rotated, in fp32.

    A Hadamard matrix is the Kronecker product of two smaller ones: first along the 16 columns that lie together, then
    along the 16 before them. TF32 holds bf16 as it is, and of the first sums the upper 11 bits.
    """
    inner = tl.minimum(side, UNIT)
    values = tl.dot(values.to(tl.float32), _signs(inner), input_precision="tf32")
    values = tl.permute(tl.reshape(values, (LENGTH // SQUARE, UNIT, UNIT)), (0, 2, 1))
    values = tl.reshape(values, (LENGTH // UNIT, UNIT))
    values = tl.dot(values, _signs(side // inner), input_precision="tf32")
    values = tl.permute(tl.reshape(values, (LENGTH // SQUARE, UNIT, UNIT)), (0, 2, 1))
    return tl.reshape(values, (LENGTH // UNIT, UNIT)) * norm


@triton.jit
def rotated_int8_kernel(  # type: ignore[no-untyped-def]
    x, q, scale, fold, columns, side, norm, floor, FOLD: tl.constexpr, LENGTH: tl.constexpr
):
    """One program per row: rotation, absmax, scale and codes from one read. See `engine.wan.int8_ops.rotated_int8`."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, LENGTH // UNIT)[:, None] * UNIT + tl.arange(0, UNIT)[None, :]
    inside = at < columns
    values = _turned(tl.load(x + row * columns + at, mask=inside, other=0.0), side, norm, LENGTH)
    if FOLD:
        values *= tl.load(fold + at, mask=inside, other=0.0)
    s = tl.maximum(tl.max(tl.abs(values)), floor) / 127.0
    tl.store(scale + row, s)
    tl.store(q + row * columns + at, tl.floor(values / s + 0.5).to(tl.int8), mask=inside)


@triton.jit
def rotated_kernel(x, y, bias, columns, side, norm, BIAS: tl.constexpr, LENGTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per row. See `engine.wan.int8_ops.rotated`."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, LENGTH // UNIT)[:, None] * UNIT + tl.arange(0, UNIT)[None, :]
    inside = at < columns
    values = _turned(tl.load(x + row * columns + at, mask=inside, other=0.0), side, norm, LENGTH)
    if BIAS:
        values += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * columns + at, values.to(y.dtype.element_ty), mask=inside)


@triton.jit
def product_kernel(  # type: ignore[no-untyped-def]
    a,
    a_scale,
    b,
    b_scale,
    y,
    M,
    N,
    K,
    SCALED: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program per tile of y = (a a_scale) (b b_scale)^T, both scales in the epilogue. GROUP tiles of rows go
    through the outputs side by side. WHOLE: K is a multiple of COLUMNS."""
    tiles_m, tiles_n = tl.cdiv(M, ROWS), tl.cdiv(N, OUTPUTS)
    first = tl.program_id(0) // (GROUP * tiles_n) * GROUP
    inside = tl.program_id(0) % (GROUP * tiles_n)
    together = tl.minimum(tiles_m - first, GROUP)
    row, output = (first + inside % together) * ROWS, inside // together * OUTPUTS
    rows, outputs = row + tl.arange(0, ROWS), output + tl.arange(0, OUTPUTS)
    # beyond the end the last one is read again, and not stored; offsets within a tile are 32-bit, to save registers
    from_a, from_b = tl.minimum(rows, M - 1), tl.minimum(outputs, N - 1)
    k = tl.arange(0, COLUMNS)
    in_a, in_b = (from_a - row)[:, None] * K + k[None, :], (from_b - output)[None, :] * K + k[:, None]
    a += row.to(tl.int64) * K
    b += output.to(tl.int64) * K
    sums = tl.zeros((ROWS, OUTPUTS), dtype=tl.int32)
    for i in range(0, tl.cdiv(K, COLUMNS)):
        if WHOLE:
            codes_a, codes_b = tl.load(a + in_a), tl.load(b + in_b)
        else:
            left = K - i * COLUMNS
            codes_a = tl.load(a + in_a, mask=k[None, :] < left, other=0)
            codes_b = tl.load(b + in_b, mask=k[:, None] < left, other=0)
        sums = tl.dot(codes_a, codes_b, sums, out_dtype=tl.int32)
        a += COLUMNS
        b += COLUMNS
    values = sums.to(tl.float32) * tl.load(a_scale + from_a)[:, None]
    if SCALED:
        values *= tl.load(b_scale + from_b)[None, :]
    at = y + rows.to(tl.int64)[:, None] * N + outputs[None, :]
    tl.store(at, values.to(y.dtype.element_ty), mask=(rows[:, None] < M) & (outputs[None, :] < N))


def rotated_int8(
    x_MK: torch.Tensor, fold_K: torch.Tensor | None, side: int, floor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    x = x_MK.contiguous()
    rows, columns = x.shape
    q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    fold = x if fold_K is None else fold_K.contiguous()
    length = length_of(columns)
    rotated_int8_kernel[(rows,)](
        x,
        q,
        scale,
        fold,
        columns,
        side,
        side**-0.5,
        floor,
        FOLD=fold_K is not None,
        LENGTH=length,
        num_warps=warps_of(length),
    )
    return q, scale


def rotated(x_MK: torch.Tensor, bias_K: torch.Tensor | None, side: int) -> torch.Tensor:
    x = x_MK.contiguous()
    rows, columns = x.shape
    y = torch.empty_like(x)
    bias = x if bias_K is None else bias_K.contiguous()
    length = length_of(columns)
    rotated_kernel[(rows,)](
        x,
        y,
        bias,
        columns,
        side,
        side**-0.5,
        BIAS=bias_K is not None,
        LENGTH=length,
        num_warps=warps_of(length),
    )
    return y


def length_of(columns: int) -> int:
    """Columns of a program that has a whole row: a power of two."""
    return max(LEAST, 1 << (columns - 1).bit_length())


def warps_of(length: int) -> int:
    return max(1, min(16, length // 1024))


def int8_product(
    a_MK: torch.Tensor,
    a_scale: torch.Tensor,
    b_NK: torch.Tensor,
    b_scale: torch.Tensor | None,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> torch.Tensor:
    """With the fastest tile on this card, or with `tile`. Raises what Triton raises where that does not fit."""
    a, b = a_MK.contiguous(), b_NK.contiguous()
    (rows, columns), outputs = a.shape, b.shape[0]
    y = torch.empty((rows, outputs), dtype=dtype, device=a.device)
    tile = tile or fastest_tile(a.device)
    product_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)](
        a,
        a_scale,
        b,
        a_scale if b_scale is None else b_scale,
        y,
        rows,
        outputs,
        columns,
        SCALED=b_scale is not None,
        WHOLE=columns % tile.columns == 0,
        ROWS=tile.rows,
        OUTPUTS=tile.outputs,
        COLUMNS=tile.columns,
        GROUP=GROUP,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y


@cache
def fastest_tile(device: torch.device) -> Tile:
    """Of those that fit this card, measured once a process on 4096 rows of the real width. Raises RuntimeError where
    none runs."""
    rows, width = 4096, 5120
    a, b = (torch.ones(n, width, dtype=torch.int8, device=device) for n in (rows, width))
    scale = torch.ones(width, 1, device=device)
    seconds: dict[Tile, float] = {}
    for tile in TILES:
        try:
            seconds[tile] = _seconds(lambda tile=tile: int8_product(a, scale[:rows], b, scale, torch.bfloat16, tile))
        except triton.runtime.errors.OutOfResources:  # more shared memory or registers than the card has
            continue
    if not seconds:
        raise RuntimeError("no tile of the int8 product fits this card")
    return min(seconds, key=lambda tile: seconds[tile])


def _seconds(run, repeats: int = 5) -> float:  # type: ignore[no-untyped-def]
    run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats / 1e3
