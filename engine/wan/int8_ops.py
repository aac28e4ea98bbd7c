"""What a product of 8-bit integers is made of, each part one operator: rows rotated and quantized, the product of
codes, its rows rotated back.

A rotation is a Hadamard matrix over each run of `side` columns, scaled to be orthogonal: it is its own inverse, and
spreads a channel of outliers over all columns of its run. Custom operators, so that torch.compile takes them as they
are; Triton on CUDA (`engine.kernels.triton_int8`), plain torch elsewhere. The product's sums are integers and therefore
exact, in any order and with any tile.

M rows, K columns, N outputs.
"""

from functools import cache

import torch

INT8_MAX = 127.0
MOST = 256  # columns of a rotation: all of Wan's widths are multiples of it


def side_of(columns: int, most: int = MOST) -> int:
    """Columns that are rotated together: the largest power of two that divides them all, `most` at the most."""
    return min(columns & -columns, most)


@cache
def _hadamard(side: int) -> torch.Tensor:
    """(side, side) in fp32 on the CPU, orthogonal and symmetric: entry (i, j) is negative where i & j has an odd number
    of bits."""
    h = torch.ones(1, 1)
    while h.shape[0] < side:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h * side**-0.5


def turned(x_MK: torch.Tensor, side: int) -> torch.Tensor:
    """x in fp32, each run of `side` columns rotated: by torch, on any device."""
    if side == 1:
        return x_MK.float()
    runs = x_MK.float().reshape(-1, side)
    return (runs @ _hadamard(side).to(x_MK.device)).view(x_MK.shape)


def quantized(x_MK: torch.Tensor, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, scale) of fp32 rows: scale (M, 1) = max(absmax of the row, floor) / 127, q = x / scale to the nearest."""
    scale = x_MK.abs().amax(1, keepdim=True).clamp(min=floor) / INT8_MAX
    return (x_MK / scale + 0.5).floor().to(torch.int8), scale


@torch.library.custom_op("wanlora::rotated_int8", mutates_args=())
def rotated_int8(
    x_MK: torch.Tensor, fold_K: torch.Tensor | None, side: int, floor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, scale) of the rotated rows: q (M, K) int8, scale (M, 1) fp32.

    With `fold`, the rotated row is multiplied by it column by column before it is quantized (the scale of a frozen
    weight, in backward).
    """
    x = turned(x_MK, side)
    return quantized(x if fold_K is None else x * fold_K, floor)


@rotated_int8.register_fake
def _(x_MK: torch.Tensor, fold_K: torch.Tensor | None, side: int, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    return x_MK.new_empty(x_MK.shape, dtype=torch.int8), x_MK.new_empty((x_MK.shape[0], 1), dtype=torch.float32)


@torch.library.custom_op("wanlora::int8_product", mutates_args=())
def int8_product(
    a_MK: torch.Tensor, a_scale: torch.Tensor, b_NK: torch.Tensor, b_scale: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """(M, N) = (a a_scale) (b b_scale)^T in `dtype`, scales being (M, 1) and (N, 1) in fp32. Both operands are
    contiguous: integer matrix units read 8 bits along the contraction only."""
    y = torch._int_mm(a_MK, b_NK.t()).float() * a_scale
    return (y if b_scale is None else y * b_scale.t()).to(dtype)


@int8_product.register_fake
def _(
    a_MK: torch.Tensor, a_scale: torch.Tensor, b_NK: torch.Tensor, b_scale: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    return a_MK.new_empty((a_MK.shape[0], b_NK.shape[0]), dtype=dtype)


@torch.library.custom_op("wanlora::rotated", mutates_args=())
def rotated(x_MK: torch.Tensor, bias_K: torch.Tensor | None, side: int) -> torch.Tensor:
    """The rows rotated, plus the bias, in x's type."""
    x = turned(x_MK, side)
    x = x.clone() if bias_K is None else x + bias_K
    return x.to(x_MK.dtype)


@rotated.register_fake
def _(x_MK: torch.Tensor, bias_K: torch.Tensor | None, side: int) -> torch.Tensor:
    return x_MK.new_empty(x_MK.shape)


@rotated_int8.register_kernel("cuda")
def _(x_MK: torch.Tensor, fold_K: torch.Tensor | None, side: int, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    from engine.kernels import triton_int8  # Triton comes with the CUDA builds of torch alone

    return triton_int8.rotated_int8(x_MK, fold_K, side, floor)


@int8_product.register_kernel("cuda")
def _(
    a_MK: torch.Tensor, a_scale: torch.Tensor, b_NK: torch.Tensor, b_scale: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    from engine.kernels import triton_int8

    return triton_int8.int8_product(a_MK, a_scale, b_NK, b_scale, dtype)


@rotated.register_kernel("cuda")
def _(x_MK: torch.Tensor, bias_K: torch.Tensor | None, side: int) -> torch.Tensor:
    from engine.kernels import triton_int8

    return triton_int8.rotated(x_MK, bias_K, side)
