"""Queries and keys normalized over all heads and turned by their position, as one operator each way: a row is read and
written once.

Custom operators, so that torch.compile takes them as they are; Triton on CUDA (`engine.kernels.triton_norm_rope`),
plain torch elsewhere. M rows (tokens of one clip after the other), D width, T tokens, K head width.
"""

from typing import Any

import torch

EPS = 1e-6


def _turned(x_MD: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor) -> torch.Tensor:
    tokens, width = cos_TK.shape
    x1, x2 = x_MD.view(-1, tokens, x_MD.shape[1] // width, width // 2, 2).unbind(-1)
    cos, sin = cos_TK[:, None, 0::2], sin_TK[:, None, 1::2]
    return torch.stack([x1 * cos - x2 * sin, x1 * sin + x2 * cos], dim=-1).view(x_MD.shape)


def _normed(x_MD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x in fp32 over its root mean square, one over that)"""
    x = x_MD.float()
    inverse = torch.rsqrt(x.square().mean(1, keepdim=True) + EPS)
    return x * inverse, inverse


@torch.library.custom_op("wanlora::norm_rope", mutates_args=())
def norm_rope(x_MD: torch.Tensor, weight_D: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor) -> torch.Tensor:
    """x over its root mean square, times `weight`, each pair of columns turned by its angle; in x's type."""
    return _turned(_normed(x_MD)[0] * weight_D.float(), cos_TK, sin_TK).to(x_MD.dtype)


@torch.library.custom_op("wanlora::norm_rope_gradient", mutates_args=())
def norm_rope_gradient(
    g_MD: torch.Tensor, x_MD: torch.Tensor, weight_D: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor
) -> torch.Tensor:
    """The gradient of x."""
    normed, inverse = _normed(x_MD)
    g = _turned(g_MD.float(), cos_TK, -sin_TK) * weight_D.float()
    return (inverse * (g - normed * (g * normed).mean(1, keepdim=True))).to(x_MD.dtype)


@norm_rope.register_fake
def _(x_MD: torch.Tensor, weight_D: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor) -> torch.Tensor:
    return x_MD.new_empty(x_MD.shape)


@norm_rope_gradient.register_fake
def _(
    g_MD: torch.Tensor, x_MD: torch.Tensor, weight_D: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor
) -> torch.Tensor:
    return x_MD.new_empty(x_MD.shape)


@norm_rope.register_kernel("cuda")
def _(x_MD: torch.Tensor, weight_D: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor) -> torch.Tensor:
    from engine.kernels import triton_norm_rope  # Triton comes with the CUDA builds of torch alone

    return triton_norm_rope.norm_rope(None, x_MD, weight_D, cos_TK, sin_TK, EPS)


@norm_rope_gradient.register_kernel("cuda")
def _(
    g_MD: torch.Tensor, x_MD: torch.Tensor, weight_D: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor
) -> torch.Tensor:
    from engine.kernels import triton_norm_rope

    return triton_norm_rope.norm_rope(g_MD, x_MD, weight_D, cos_TK, sin_TK, EPS)


class NormRope(torch.autograd.Function):
    """`norm_rope` with the gradient of x; the weight is frozen."""

    @staticmethod
    def forward(
        ctx: Any, x_MD: torch.Tensor, weight_D: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x_MD, weight_D, cos_TK, sin_TK)
        return norm_rope(x_MD, weight_D, cos_TK, sin_TK)

    @staticmethod
    def backward(ctx: Any, g_MD: torch.Tensor) -> Any:
        return norm_rope_gradient(g_MD, *ctx.saved_tensors), None, None, None
