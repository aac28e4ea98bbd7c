"""Exact attention with its pieces in hand: the forward returns what the backward needs, so a block can be recomputed
without running attention a second time.

B batch, N heads, T query tokens, S key tokens, K head width. Tensors are (B, N, T, K), any strides.
"""

import time

import torch

from presets.errors import UserError

aten = torch.ops.aten
CUDA_BACKENDS = ("cudnn", "flash")


def forward(backend: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T / sqrt(K)) v and its logsumexp."""
    if backend == "cudnn":
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False)
    elif backend == "flash":
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False)
    else:
        assert backend == "cpu", backend
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False)
    return out, lse


def backward(
    backend: str, grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v from the forward's own output and logsumexp."""
    T, S = q.shape[2], k.shape[2]
    if backend == "cpu":
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, False)
        return dq, dk, dv
    seed = torch.empty((), dtype=torch.long, device=q.device)  # of the dropout that is off
    if backend == "cudnn":
        dq, dk, dv = aten._scaled_dot_product_cudnn_attention_backward(grad, q, k, v, out, lse, seed, seed, None, None, None, T, S, 0.0, False)
    else:
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(grad, q, k, v, out, lse, None, None, T, S, 0.0, False, state, seed)
    return dq, dk, dv


def choose(device: torch.device, *, tokens: int, heads: int, width: int, dtype: torch.dtype) -> tuple[str, str]:
    """(backend, why): the fastest of the exact ones on this card, forward plus backward, measured once."""
    if device.type != "cuda":
        return "cpu", "the CPU has one"
    tokens = min(tokens, 16384)  # enough to fill any card; the ranking does not change with length
    q, k, v = (torch.randn(1, heads, tokens, width, device=device, dtype=dtype) for _ in range(3))
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    for backend in CUDA_BACKENDS:
        try:
            for turn in range(3):
                if turn == 1:
                    torch.cuda.synchronize(device)
                    start = time.perf_counter()
                out, lse = forward(backend, q, k, v)
                backward(backend, out, q, k, v, out, lse)
            torch.cuda.synchronize(device)
            seconds[backend] = (time.perf_counter() - start) / 2
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as e:  # a card or build without this kernel
            refused[backend] = str(e).splitlines()[0]
    if not seconds:
        reasons = "; ".join(f"{backend}: {why}" for backend, why in refused.items())
        raise UserError(f"no exact attention runs on this card ({reasons})", where="job.gpus", fix="Use a card of compute capability 8.0 or newer, or update torch")
    best = min(seconds, key=lambda b: seconds[b])
    words = [f"{b} {s * 1000:.1f} ms" for b, s in seconds.items()] + [f"{b} not available ({why})" for b, why in refused.items()]
    return best, f"at {tokens} tokens: {', '.join(words)}"
