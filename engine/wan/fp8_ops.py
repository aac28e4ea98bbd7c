"""What stands around a float8 product, each part one operator: an activation's rows quantized, each read once where
compiled reductions read it several times, and a weight transposed for the gradient.

Custom operators, so that torch.compile takes them as they are; Triton on CUDA, plain torch elsewhere (for the tests).
M rows, K columns, N outputs.
"""

import torch

E4M3_MAX = 448.0


@torch.library.custom_op("wanlora::rowwise_e4m3", mutates_args=())
def rowwise_e4m3(x_MK: torch.Tensor, fold_K: torch.Tensor | None, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, scale) with q (M, K) e4m3 and scale (M, 1) fp32: scale = max(absmax of the row, floor) / 448, q = x / scale.

    With `fold`, x is first multiplied by it column by column (the scale of a frozen weight, in backward).
    """
    x = x_MK.float() if fold_K is None else x_MK.float() * fold_K
    scale = x.abs().amax(1, keepdim=True).clamp(min=floor) / E4M3_MAX
    return (x / scale).to(torch.float8_e4m3fn), scale


@rowwise_e4m3.register_fake
def _(x_MK: torch.Tensor, fold_K: torch.Tensor | None, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    return x_MK.new_empty(x_MK.shape, dtype=torch.float8_e4m3fn), x_MK.new_empty(
        (x_MK.shape[0], 1), dtype=torch.float32
    )


@torch.library.custom_op("wanlora::e4m3_gradient", mutates_args=())
def e4m3_gradient(g8_MN: torch.Tensor, g_scale: torch.Tensor, w_NK: torch.Tensor) -> torch.Tensor:
    """(M, K) in bf16: g W, the rows of g with their scales. The units of 8 bits read along the contraction only, so W
    is transposed first: in one operator with the product, because the compiler takes what depends on weights alone for
    the forward's, and would keep every transposed weight until the backward."""
    return _times(g8_MN, g_scale, w_NK.t().contiguous())


@e4m3_gradient.register_fake
def _(g8_MN: torch.Tensor, g_scale: torch.Tensor, w_NK: torch.Tensor) -> torch.Tensor:
    return g8_MN.new_empty((g8_MN.shape[0], w_NK.shape[1]), dtype=torch.bfloat16)


def _times(g8_MN: torch.Tensor, g_scale: torch.Tensor, w_KN: torch.Tensor) -> torch.Tensor:
    ones = torch.ones(1, w_KN.shape[0], device=w_KN.device)
    return torch._scaled_mm(
        g8_MN, w_KN.t(), scale_a=g_scale, scale_b=ones, out_dtype=torch.bfloat16, use_fast_accum=True
    )


@rowwise_e4m3.register_kernel("cuda")
def _(x_MK: torch.Tensor, fold_K: torch.Tensor | None, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    from engine.wan import triton_fp8  # Triton comes with the CUDA builds of torch alone

    return triton_fp8.rowwise_e4m3(x_MK, fold_K, floor)


@e4m3_gradient.register_kernel("cuda")
def _(g8_MN: torch.Tensor, g_scale: torch.Tensor, w_NK: torch.Tensor) -> torch.Tensor:
    from engine.wan import triton_fp8

    return _times(g8_MN, g_scale, triton_fp8.transposed(w_NK))
