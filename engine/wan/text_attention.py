"""The attention to the text as one operator, so that compiled code takes any kernel of `engine.wan.attention` as it is,
with and without a graph.

B batch, T tokens, S text tokens, N heads, K head width.
"""

from typing import Any

import torch

from engine.wan import attention
from engine.wan.attention import TextKernels


def text_attention(
    q_BTNK: torch.Tensor, k_BSNK: torch.Tensor, v_BSNK: torch.Tensor, kernels: TextKernels
) -> torch.Tensor:
    """softmax(q k^T / sqrt(K)) v, as (B, T, N, K)."""
    out_BTNK, _ = _forward(q_BTNK, k_BSNK, v_BSNK, *kernels)
    return out_BTNK


@torch.library.custom_op("wanlora::text_attention", mutates_args=())
def _forward(
    q_BTNK: torch.Tensor,
    k_BSNK: torch.Tensor,
    v_BSNK: torch.Tensor,
    forward_kernel: str,
    backward_kernel: str,
    deterministic: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and its logsumexp (B, N, T): what backward needs."""
    out, lse = attention.forward(forward_kernel, *(t.transpose(1, 2) for t in (q_BTNK, k_BSNK, v_BSNK)))
    return out.transpose(1, 2).contiguous(), lse.contiguous()


@_forward.register_fake
def _(
    q_BTNK: torch.Tensor, k_BSNK: torch.Tensor, v_BSNK: torch.Tensor, *_kernels: str | bool
) -> tuple[torch.Tensor, torch.Tensor]:
    B, T, N, _ = q_BTNK.shape
    return q_BTNK.new_empty(q_BTNK.shape), q_BTNK.new_empty((B, N, T), dtype=torch.float32)


@torch.library.custom_op("wanlora::text_attention_backward", mutates_args=())
def _backward(
    grad_BTNK: torch.Tensor,
    q_BTNK: torch.Tensor,
    k_BSNK: torch.Tensor,
    v_BSNK: torch.Tensor,
    out_BTNK: torch.Tensor,
    lse_BNT: torch.Tensor,
    kernel: str,
    deterministic: bool,
    text_learns: bool,
) -> list[torch.Tensor]:
    """Gradients of q, k, v; of q alone where nothing before the keys and values learns."""
    tensors = (*(t.transpose(1, 2) for t in (grad_BTNK, q_BTNK, k_BSNK, v_BSNK, out_BTNK)), lse_BNT)
    grads: tuple[torch.Tensor, ...]
    if text_learns:
        grads = attention.backward(kernel, *tensors, deterministic=deterministic)
    else:
        grads = (attention.backward_of_queries(kernel, *tensors, deterministic=deterministic),)
    return [t.transpose(1, 2).contiguous() for t in grads]


@_backward.register_fake
def _(
    grad_BTNK: torch.Tensor,
    q_BTNK: torch.Tensor,
    k_BSNK: torch.Tensor,
    v_BSNK: torch.Tensor,
    out_BTNK: torch.Tensor,
    lse_BNT: torch.Tensor,
    kernel: str,
    deterministic: bool,
    text_learns: bool,
) -> list[torch.Tensor]:
    return [t.new_empty(t.shape) for t in ((q_BTNK, k_BSNK, v_BSNK) if text_learns else (q_BTNK,))]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, _, ctx.kernel, ctx.deterministic = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the logsumexp's


def _graph(ctx: Any, grad_BTNK: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
    text_learns = any(ctx.needs_input_grad[1:3])
    found = _backward(grad_BTNK, *ctx.saved_tensors, ctx.kernel, ctx.deterministic, text_learns)
    return *found, *(None for _ in range(6 - len(found)))


_forward.register_autograd(_graph, setup_context=_keep)
