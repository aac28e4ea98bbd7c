"""The Triton kernel behind `engine.wan.norm_rope`, in a module of its own because Triton comes with CUDA alone."""

import torch
import triton
import triton.language as tl

WARPS = 8


@triton.jit
def both_of(pairs):  # type: ignore[no-untyped-def]
    """Two bf16 that lie in one int32, as fp32: no thread asks another for the other half, and loads stay wide."""
    return (pairs << 16).to(tl.float32, bitcast=True), (pairs & -65536).to(tl.float32, bitcast=True)


@triton.jit
def pairs_of(first, second):  # type: ignore[no-untyped-def]
    low = first.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
    high = second.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
    return low | (high << 16)


@triton.jit
def norm_rope_kernel(  # type: ignore[no-untyped-def]
    g,
    x,
    weight,
    cos,
    sin,
    out,
    tokens,
    columns,
    width,
    eps,
    GRADIENT: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """One program per row, both passes over it in registers; g, x, weight and out are pairs of bf16. HEADS and PAIRS:
    powers of two that hold heads and half of the head width."""
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, PAIRS)
    at = tl.arange(0, HEADS)[:, None] * (width // 2) + pair[None, :]
    inside = (2 * pair[None, :] < width) & (2 * at < columns)
    here = row * (columns // 2) + at
    first, second = both_of(tl.load(x + here, mask=inside, other=0))
    inverse = 1.0 / tl.sqrt(tl.sum(first * first + second * second) / columns + eps)
    first *= inverse
    second *= inverse
    scale_1, scale_2 = both_of(tl.load(weight + at, mask=inside, other=0))
    angle = row % tokens * width + 2 * pair
    c = tl.load(cos + angle, mask=2 * pair < width, other=0.0)[None, :]
    s = tl.load(sin + angle + 1, mask=2 * pair < width, other=0.0)[None, :]
    if GRADIENT:
        g_1, g_2 = both_of(tl.load(g + here, mask=inside, other=0))
        turned_1 = (g_1 * c + g_2 * s) * scale_1
        turned_2 = (g_2 * c - g_1 * s) * scale_2
        along = tl.sum(turned_1 * first + turned_2 * second) / columns
        turned_1 = inverse * (turned_1 - first * along)
        turned_2 = inverse * (turned_2 - second * along)
    else:
        first *= scale_1
        second *= scale_2
        turned_1 = first * c - second * s
        turned_2 = first * s + second * c
    tl.store(out + here, pairs_of(turned_1, turned_2), mask=inside)


def norm_rope(
    g_MD: torch.Tensor | None,
    x_MD: torch.Tensor,
    weight_D: torch.Tensor,
    cos_TK: torch.Tensor,
    sin_TK: torch.Tensor,
    eps: float,
    warps: int = WARPS,
) -> torch.Tensor:
    """The gradient of x where `g` is given; all but the angles in bf16."""
    assert x_MD.dtype == weight_D.dtype == torch.bfloat16
    x, cos, sin = x_MD.contiguous(), cos_TK.contiguous(), sin_TK.contiguous()
    (rows, columns), (tokens, width) = x.shape, cos.shape
    out = torch.empty_like(x)
    norm_rope_kernel[(rows,)](
        (x if g_MD is None else g_MD.contiguous()).view(torch.int32),
        x.view(torch.int32),
        weight_D.contiguous().view(torch.int32),
        cos,
        sin,
        out.view(torch.int32),
        tokens,
        columns,
        width,
        eps,
        GRADIENT=g_MD is not None,
        HEADS=power(columns // width),
        PAIRS=power(width // 2),
        num_warps=warps,
    )
    return out


def power(n: int) -> int:
    """Of two, that holds n."""
    return 1 << (n - 1).bit_length()
