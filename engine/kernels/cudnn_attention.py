"""The backward of exact attention by the open kernels of the package nvidia-cudnn-frontend, in CuTe DSL: A100, and
Blackwell outside data centres. They take nothing of torch's cuDNN, and are compiled where they run, once for each
layout of the tensors.

B batch, N heads, T query tokens, S key tokens, K head width.
"""

from typing import Any

import torch

KINDS = {8: "SdpaBwdDslSm80", 12: "SdpaBwdDslSm120"}  # major compute capability -> the class of its kernels
_compiled: dict[tuple[Any, ...], Any] = {}  # what tensors look like -> the kernels for them


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    deterministic: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, laid out (B, T, N, K) in memory. Tensors are (B, N, T, K), `lse` (B, N, T) with the natural
    logarithm. Raises what the package raises where card, type or sizes are none of its own, and ImportError without
    it."""
    B, N, T, K = q.shape
    S = k.shape[2]
    q, k, v, out, grad = (t if _readable(t) else t.contiguous() for t in (q, k, v, out, grad))
    # Were this one laid out as the others, the kernels of Blackwell would fix the order by keeping T x S for every
    # head: 10 GB at 11,264 tokens. This way they add up in turns, in fp32.
    dq = q.new_empty(B, N, T, K)
    dk, dv = (t.new_empty(B, S, N, K).transpose(1, 2) for t in (k, v))
    tensors = (q, k, v, out, grad, lse.contiguous().unsqueeze(-1), dq, dk, dv)
    key = (deterministic, q.device, *((t.shape, t.stride(), t.dtype) for t in tensors))
    if key not in _compiled:
        _compiled[key] = _compile(tensors, deterministic)
    kernels = _compiled[key]
    workspace = torch.empty(kernels.scratch_workspace_bytes(), dtype=torch.uint8, device=q.device)
    kernels.execute(*tensors, workspace=workspace)
    del workspace  # before there is a copy
    return dq.transpose(1, 2).contiguous().transpose(1, 2), dk, dv


def _readable(t: torch.Tensor) -> bool:
    """Whether rows of the width lie whole, at multiples of 16 bytes, each where no other is."""
    *outer, innermost = t.stride()
    return innermost == 1 and all(stride and not stride * t.element_size() % 16 for stride in outer)


def _compile(tensors: tuple[torch.Tensor, ...], deterministic: bool) -> Any:
    from cudnn.sdpa import bwd  # an optional package, and seconds to import

    major, minor = torch.cuda.get_device_capability(tensors[0].device)
    if major not in KINDS:
        raise RuntimeError(f"no kernels for compute capability {major}.{minor}")
    kernels = getattr(bwd, KINDS[major])(*tensors, deterministic=deterministic)
    kernels.check_support()
    kernels.compile()
    return kernels
