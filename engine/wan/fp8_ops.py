"""Row-wise float8 of an activation as one operator: each row is read once, where compiled reductions read it several
times.

A custom operator, so that torch.compile takes it as it is; Triton on CUDA, plain torch elsewhere (for the tests).
M rows, K columns.
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


@rowwise_e4m3.register_kernel("cuda")
def _(x_MK: torch.Tensor, fold_K: torch.Tensor | None, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    from engine.kernels.triton_fp8 import rowwise_e4m3_kernel  # Triton comes with the CUDA builds of torch alone

    x = x_MK.contiguous()
    rows, columns = x.shape
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    block = 1 << (columns - 1).bit_length()
    rowwise_e4m3_kernel[(rows,)](
        x,
        q,
        scale,
        x if fold_K is None else fold_K,
        columns,
        floor,
        FOLD=fold_K is not None,
        BLOCK=block,
        num_warps=8 if block <= 8192 else 16,
    )
    return q, scale
