"""A frozen linear whose products are made of 8-bit integers in both directions, from one packed copy of its weight.

y = x W^T = H_N((x H_K) Q^T) with Q = H_N W H_K, H being rotations of runs of 256 (`engine.wan.int8_ops`): the weight is
rotated along its inputs *and* its outputs once, when it is packed, and what goes in and comes out at every product.
Backward is the same the other way around, g W = H_K((g H_N) Q). Q is quantized row by row, so in backward its scales
lie along the contraction and fold into the rotated g before that is quantized.

Why along both: rotated along its inputs alone, the weight would meet a gradient that is not rotated, whose outlier
channels then cost the others their digits. Error of the input gradient of one linear (5120 x 5120, 256 rows, relative
to the exact one; without outliers, channels of log-normal size, one of 500 channels 50 times as large):

    rotated along                 Gaussian   log-normal   outliers
    inputs, scale folded in           1.6%         4.8%      10.1%
    inputs, quantized again           1.5%         1.5%       1.7%   (another weight in every backward)
    inputs and outputs, folded in     1.3%         1.3%       1.5%
    float8                            3.7%         3.7%       3.4%

`benchmarks.precision_error` measures it again. The rotated rows of Q are of one size, so that folding is harmless.

M rows (tokens), K in, N out.
"""

from typing import Any

import torch

from engine.wan.int8_ops import MOST, int8_product, quantized, rotated, rotated_int8, side_of, turned


def pack_int8(weight_NK: torch.Tensor, most: int = MOST) -> tuple[torch.Tensor, torch.Tensor]:
    """(Q, scale): the rotated weight in int8, with a scale per row in fp32: absmax / 127."""
    return quantized(_both_ways(weight_NK.float(), most), 1e-12)


def unpack_int8(q_NK: torch.Tensor, scale_N1: torch.Tensor, most: int = MOST) -> torch.Tensor:
    """The weight in fp32 that it stands for."""
    return _both_ways(q_NK.float() * scale_N1, most)


def _both_ways(weight_NK: torch.Tensor, most: int) -> torch.Tensor:
    n, k = weight_NK.shape
    along_inputs = turned(weight_NK, side_of(k, most))
    return turned(along_inputs.t().contiguous(), side_of(n, most)).t().contiguous()


class Int8Product(torch.autograd.Function):
    """y = x W^T + bias. `most`: columns that are rotated together; 1 for no rotation."""

    @staticmethod
    def forward(
        ctx: Any, x_MK: torch.Tensor, q_NK: torch.Tensor, scale_N1: torch.Tensor, bias_N: torch.Tensor, most: int
    ) -> torch.Tensor:
        ctx.save_for_backward(q_NK, scale_N1)
        ctx.most = most
        x8, x_scale = rotated_int8(x_MK, None, side_of(q_NK.shape[1], most), 1e-6)
        y = int8_product(x8, x_scale, q_NK, scale_N1, x_MK.dtype)
        return rotated(y, bias_N, side_of(q_NK.shape[0], most))

    @staticmethod
    def backward(ctx: Any, g_MN: torch.Tensor) -> Any:
        q_NK, scale_N1 = ctx.saved_tensors
        g8, g_scale = rotated_int8(g_MN, scale_N1.squeeze(1), side_of(q_NK.shape[0], ctx.most), 1e-12)
        dx = int8_product(g8, g_scale, q_NK.t().contiguous(), None, g_MN.dtype)
        return rotated(dx, None, side_of(q_NK.shape[1], ctx.most)), None, None, None, None
