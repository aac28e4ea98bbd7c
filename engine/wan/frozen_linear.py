"""Frozen linears in the plan's precision, with the LoRA branch, and gradients for all but the frozen weight.

The packed weight is all that backward keeps: it is dequantized again there, never saved in bf16. One packed copy serves
both products. How weights are packed: `engine.wan.quantize`.

M rows (tokens), K in, N out, R rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from engine.wan.fp8_ops import E4M3_MAX, rowwise_e4m3
from engine.wan.int8_linear import Int8Product, unpack_int8
from engine.wan.int8_ops import MOST
from engine.wan.low_rank import LowRankSum, low_rank_sum

Packed = tuple[torch.Tensor, ...]  # (weight,) or (q, scale) or (q, scale, shift)
COMPUTED_IN_8_BITS = "float8"
COMPUTED_IN_INTEGERS = "int8"


def pack_float8(weight_NK: torch.Tensor) -> Packed:
    """One frozen weight in e4m3, with a scale per output row in fp32: absmax / 448."""
    w = weight_NK.float()
    scale = w.abs().amax(1, keepdim=True).clamp(min=1e-12) / E4M3_MAX
    return (w / scale).to(torch.float8_e4m3fn), scale


def unpack_weight(packed: Packed, precision: str, dtype: torch.dtype) -> torch.Tensor:
    """The (N, K) weight that `packed` stands for. Scales are per output row (qint4: per group of inputs, with the value
    of code 0), fp32; qint4 has codes 0..15, two to a byte, and those of qfloat8 may be given as bytes."""
    if precision == "none":
        return packed[0].to(dtype)
    if precision == COMPUTED_IN_INTEGERS:
        return unpack_int8(packed[0], packed[1]).to(dtype)
    if precision != "qint4":
        q = packed[0]
        values = e4m3_values(q) if precision == "qfloat8" and q.dtype == torch.uint8 else q.to(torch.float32)
        return (values * packed[1]).to(dtype)
    q, scale, low = packed
    n, groups = scale.shape
    values = torch.stack([q & 15, q >> 4], dim=2).view(n, groups, -1).to(torch.float32)
    return (values * scale.unsqueeze(2) + low.unsqueeze(2)).to(dtype).view(n, -1)


def e4m3_values(codes: torch.Tensor) -> torch.Tensor:
    """The fp32 values of e4m3 codes that are given as bytes, exactly as a cast has them.

    In integers, because Triton has no e4m3 below compute capability 8.9: a kernel that reads float8_e4m3fn does not
    compile there (torch up to 2.9; later ones cast the whole weight to fp32 before the kernel).
    """
    magnitude = (codes & 127).to(torch.int32)
    # 4 bits of exponent and 3 of mantissa where fp32 has them, the bias from 7 to 127
    normal = (magnitude << 20) + (120 << 23)
    bits = torch.where(magnitude < 8, (magnitude.to(torch.float32) * 2.0**-9).view(torch.int32), normal)
    bits = torch.where(magnitude == 127, 0x7FC00000, bits)  # not a number
    return (bits | ((codes & 128).to(torch.int32) << 24)).view(torch.float32)


def as_bytes(packed: Packed) -> Packed:
    """The same memory, e4m3 as bytes: what `unpack_weight` reads on any card."""
    return tuple(t.view(torch.uint8) if t.dtype == torch.float8_e4m3fn else t for t in packed)


class _Float8Product(torch.autograd.Function):
    """y = x W^T with float8 matrix products in both directions.

    Forward: x and W row-wise. Backward: the contraction runs over the rows of W, whose scale therefore cannot stay
    outside; it folds into g before g is quantized. With a LoRA's A also x A^T: both parts of x's gradient are summed in
    one pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_MK: torch.Tensor,
        w_NK: torch.Tensor,
        scale_N1: torch.Tensor,
        bias_N: torch.Tensor,
        a_RK: torch.Tensor | None,
    ) -> Any:
        ctx.save_for_backward(w_NK, scale_N1, *([] if a_RK is None else [x_MK, a_RK]))
        x8, x_scale = rowwise_e4m3(x_MK, None, 1e-6)
        y = torch._scaled_mm(
            x8,
            w_NK.t(),
            scale_a=x_scale,
            scale_b=scale_N1.t(),
            bias=bias_N,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return y if a_RK is None else (y, F.linear(x_MK, a_RK))

    @staticmethod
    def backward(ctx: Any, g_MN: torch.Tensor, *g_MR: torch.Tensor) -> Any:
        w_NK, scale_N1, *lora = ctx.saved_tensors
        g8, g_scale = rowwise_e4m3(g_MN, scale_N1.squeeze(1), 1e-12)
        w_KN = w_NK.t().contiguous()
        ones = torch.ones(1, w_KN.shape[0], device=g_MN.device)
        dx = torch._scaled_mm(
            g8, w_KN.t(), scale_a=g_scale, scale_b=ones, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        if not lora:
            return dx, None, None, None, None
        x_MK, a_RK = lora
        return low_rank_sum(dx, g_MR[0], a_RK.t(), False), None, None, None, g_MR[0].t() @ x_MK


class _DequantizedProduct(torch.autograd.Function):
    """y = x W^T with W dequantized on the spot, in both directions."""

    @staticmethod
    def forward(
        ctx: Any, x_MK: torch.Tensor, precision: str, bias_N: torch.Tensor, *packed: torch.Tensor
    ) -> torch.Tensor:
        ctx.precision = precision
        ctx.save_for_backward(*packed)
        return F.linear(x_MK, unpack_weight(packed, precision, x_MK.dtype), bias_N)

    @staticmethod
    def backward(ctx: Any, g_MN: torch.Tensor) -> Any:
        w = unpack_weight(ctx.saved_tensors, ctx.precision, g_MN.dtype)
        return g_MN @ w, None, None, *(None for _ in ctx.saved_tensors)


def frozen_linear(x: torch.Tensor, packed: Packed, bias_N: torch.Tensor, precision: str) -> torch.Tensor:
    """x (..., K) through a frozen linear -> (..., N)."""
    x_MK = x.reshape(-1, x.shape[-1])
    if precision == COMPUTED_IN_8_BITS:
        y = _Float8Product.apply(x_MK, *packed, bias_N, None)
    elif precision == COMPUTED_IN_INTEGERS:
        y = Int8Product.apply(x_MK, *packed, bias_N, MOST)
    else:
        y = _DequantizedProduct.apply(x_MK, precision, bias_N, *packed)
    return y.view(*x.shape[:-1], -1)


def lora_branch(x: torch.Tensor, a_RK: torch.Tensor, b_NR: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """scale * B A x, in x's dtype; A and B are the fp32 master copies."""
    return F.linear(F.linear(x, a_RK.to(x.dtype)) * scale.to(x.dtype), b_NR.to(x.dtype))


def frozen_linear_and_lora_input(
    x: torch.Tensor, packed: Packed, bias_N: torch.Tensor, precision: str, a_RK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(`frozen_linear` of x, A x)"""
    a = a_RK.to(x.dtype)
    if precision != COMPUTED_IN_8_BITS or not x.requires_grad:
        return frozen_linear(x, packed, bias_N, precision), F.linear(x, a)
    y, ax = _Float8Product.apply(x.reshape(-1, x.shape[-1]), *packed, bias_N, a)
    return y.view(*x.shape[:-1], -1), ax.view(*x.shape[:-1], -1)


def lora_inputs(x: torch.Tensor, downs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """A x of each A (R, K), in one product: x is read once for all, and backward its gradient written once."""
    return F.linear(x, torch.cat(tuple(downs)).to(x.dtype)).split([a.shape[0] for a in downs], dim=-1)


def plus_lora(
    y: torch.Tensor, ax: torch.Tensor, b_NR: torch.Tensor, scale: torch.Tensor, *, gelu: bool
) -> torch.Tensor:
    """y + scale * B ax, or the GELU of it."""
    through = (ax * scale.to(ax.dtype)).flatten(0, -2)
    return LowRankSum.apply(y.flatten(0, -2), through, b_NR.to(y.dtype), gelu).view(y.shape)
