"""A LoRA's part of a linear's output, of its input's gradient and of a GELU, each made where the sum is written: the
small product is never a tensor of its own, which would be written and read once more.

Custom operators, so that torch.compile takes them as they are; Triton on CUDA (`engine.kernels.triton_low_rank`), plain
torch elsewhere. M rows, K inputs, N outputs, R rank.
"""

from typing import Any

import torch
from torch.nn import functional as F


@torch.library.custom_op("wanlora::low_rank_sum", mutates_args=())
def low_rank_sum(y_MN: torch.Tensor, ax_MR: torch.Tensor, b_NR: torch.Tensor, gelu: bool) -> torch.Tensor:
    """y + ax B^T, summed in fp32, in y's type; `gelu`: of that, the tanh approximation of it."""
    out = y_MN.float() + ax_MR.float() @ b_NR.float().t()
    return (F.gelu(out, approximate="tanh") if gelu else out).to(y_MN.dtype)


@torch.library.custom_op("wanlora::low_rank_gelu_gradient", mutates_args=())
def low_rank_gelu_gradient(
    g_MN: torch.Tensor, y_MN: torch.Tensor, ax_MR: torch.Tensor, b_NR: torch.Tensor
) -> torch.Tensor:
    """The gradient of y + ax B^T from that of its GELU. One operator: the compiler would make the sum in the forward,
    because it can, and keep it."""
    inner = y_MN.float() + ax_MR.float() @ b_NR.float().t()
    return torch.ops.aten.gelu_backward(g_MN.float(), inner, approximate="tanh").to(g_MN.dtype)


@low_rank_sum.register_fake
def _(y_MN: torch.Tensor, ax_MR: torch.Tensor, b_NR: torch.Tensor, gelu: bool) -> torch.Tensor:
    return y_MN.new_empty(y_MN.shape)


@low_rank_gelu_gradient.register_fake
def _(g_MN: torch.Tensor, y_MN: torch.Tensor, ax_MR: torch.Tensor, b_NR: torch.Tensor) -> torch.Tensor:
    return y_MN.new_empty(y_MN.shape)


@low_rank_sum.register_kernel("cuda")
def _(y_MN: torch.Tensor, ax_MR: torch.Tensor, b_NR: torch.Tensor, gelu: bool) -> torch.Tensor:
    from engine.kernels import triton_low_rank  # Triton comes with the CUDA builds of torch alone

    return triton_low_rank.low_rank_sum(y_MN, ax_MR, b_NR, gelu)


@low_rank_gelu_gradient.register_kernel("cuda")
def _(g_MN: torch.Tensor, y_MN: torch.Tensor, ax_MR: torch.Tensor, b_NR: torch.Tensor) -> torch.Tensor:
    from engine.kernels import triton_low_rank

    return triton_low_rank.low_rank_gelu_gradient(g_MN, y_MN, ax_MR, b_NR)


class LowRankSum(torch.autograd.Function):
    """`low_rank_sum` with gradients for all three."""

    @staticmethod
    def forward(ctx: Any, y_MN: torch.Tensor, ax_MR: torch.Tensor, b_NR: torch.Tensor, gelu: bool) -> torch.Tensor:
        ctx.gelu = gelu
        ctx.save_for_backward(ax_MR, b_NR, *([y_MN] if gelu else []))
        return low_rank_sum(y_MN, ax_MR, b_NR, gelu)

    @staticmethod
    def backward(ctx: Any, g_MN: torch.Tensor) -> Any:
        ax_MR, b_NR, *y = ctx.saved_tensors
        if ctx.gelu:
            g_MN = low_rank_gelu_gradient(g_MN, y[0], ax_MR, b_NR)
        return g_MN, g_MN @ b_NR, g_MN.t() @ ax_MR, None
