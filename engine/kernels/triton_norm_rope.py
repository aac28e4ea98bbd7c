"""The Triton kernel behind `engine.wan.norm_rope`, in a module of its own because Triton comes with CUDA alone."""

import torch
import triton
import triton.language as tl

WARPS = 8


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
    WIDTH: tl.constexpr,
):
    """One program per row, both passes over it in registers. HEADS and WIDTH: powers of two that hold heads and head
    width."""
    row = tl.program_id(0).to(tl.int64)
    k, pair = tl.arange(0, WIDTH), tl.arange(0, WIDTH // 2)
    at = tl.arange(0, HEADS)[:, None] * width + k[None, :]
    inside = (k[None, :] < width) & (at < columns)
    normed = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(normed * normed) / columns + eps)
    normed *= inverse
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    angle = row % tokens * width + 2 * pair
    c = tl.load(cos + angle, mask=2 * pair < width, other=0.0)[None, :]
    s = tl.load(sin + angle + 1, mask=2 * pair < width, other=0.0)[None, :]
    if GRADIENT:
        values = tl.load(g + row * columns + at, mask=inside, other=0.0).to(tl.float32)
        s = -s
    else:
        values = normed * scale
    first, second = tl.split(tl.reshape(values, (HEADS, WIDTH // 2, 2)))
    values = tl.reshape(tl.join(first * c - second * s, first * s + second * c), (HEADS, WIDTH))
    if GRADIENT:
        values *= scale
        values = inverse * (values - normed * (tl.sum(values * normed) / columns))
    tl.store(out + row * columns + at, values.to(out.dtype.element_ty), mask=inside)


def norm_rope(
    g_MD: torch.Tensor | None,
    x_MD: torch.Tensor,
    weight_D: torch.Tensor,
    cos_TK: torch.Tensor,
    sin_TK: torch.Tensor,
    eps: float,
    warps: int = WARPS,
) -> torch.Tensor:
    """The gradient of x where `g` is given."""
    x, cos, sin = x_MD.contiguous(), cos_TK.contiguous(), sin_TK.contiguous()
    (rows, columns), (tokens, width) = x.shape, cos.shape
    out = torch.empty_like(x)
    norm_rope_kernel[(rows,)](
        x if g_MD is None else g_MD.contiguous(),
        x,
        weight_D,
        cos,
        sin,
        out,
        tokens,
        columns,
        width,
        eps,
        GRADIENT=g_MD is not None,
        HEADS=power(columns // width),
        WIDTH=power(width),
        num_warps=warps,
    )
    return out


def power(n: int) -> int:
    """Of two, that holds n."""
    return 1 << (n - 1).bit_length()
