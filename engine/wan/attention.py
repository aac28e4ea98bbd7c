"""Exact attention in two halves: the forward returns what the backward needs, so a block can be recomputed without
running attention a second time.

`cudnn` and `flash` are torch's own kernels; `triton-large` and `triton-small` are ours, backward alone, in two sizes of
tiles for cards with more and less shared memory; `flash4` is the package flash-attn-4, for Hopper and Blackwell
data-centre cards; `cudnn-open` is the open backward of the package nvidia-cudnn-frontend, for other Blackwell cards and
A100; `cpu` is the CPU's. They agree on what a logsumexp is, so one may run forward and another backward.
The attention to the text, of few keys, has its own choice of them; a block runs it by `engine.wan.text_attention`.

B batch, N heads, T query tokens, S key tokens, K head width. Tensors are (B, N, T, K), any strides.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch

from engine.kernels import cudnn_attention
from engine.system.device import fixed_order, memory_errors
from presets.caches.cache_files import caches_dir
from presets.errors import UserError
from presets.machine.torch_build import CUDNN_OPEN_CARDS, FLASH4_CARDS

aten = torch.ops.aten


class Package(NamedTuple):
    """One that brings kernels, and is not on every machine."""

    name: str
    module: str


KERNELS = ("cudnn", "flash", "triton-large", "triton-small", "flash4", "cudnn-open")  # of CUDA
OF_TRITON = ("triton-large", "triton-small")
BACKWARD_ONLY = (*OF_TRITON, "cudnn-open")
TRITON, FLASH4 = Package("triton", "triton"), Package("flash-attn-4", "flash_attn")
CUDNN_OPEN = Package("nvidia-cudnn-frontend", "cudnn")
PACKAGES = {"triton-large": TRITON, "triton-small": TRITON, "flash4": FLASH4, "cudnn-open": CUDNN_OPEN}
AGREE = 0.02  # relative: bf16 kernels that sum in other orders differ by a tenth of this
TEXT_TOKENS = 512  # as many keys has the attention to the text: all that Wan was trained with
Grads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class TextKernels(NamedTuple):
    """The kernels of the attention to the text: compiled functions are given them."""

    forward: str
    backward: str
    deterministic: bool


@dataclass(frozen=True)
class Attention:
    """The kernels of a run, one for each direction of its self-attention and of the attention to the text."""

    forward_kernel: str
    backward_kernel: str
    deterministic: bool  # the backward adds in a fixed order: the same inputs give the same bits
    text_forward_kernel: str = ""  # not told by checkpoints from before these were chosen
    text_backward_kernel: str = ""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """softmax(q k^T / sqrt(K)) v, and its logsumexp (B, N, T)."""
        return forward(self.forward_kernel, q, k, v)

    def backward(
        self,
        grad: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> Grads:
        """Gradients of q, k, v from the forward's own output and logsumexp."""
        return backward(self.backward_kernel, grad, q, k, v, out, lse, deterministic=self.deterministic)

    @property
    def to_text(self) -> TextKernels:
        assert self.text_forward_kernel and self.text_backward_kernel, "kernels of a checkpoint that does not tell them"
        return TextKernels(self.text_forward_kernel, self.text_backward_kernel, self.deterministic)

    @property
    def text(self) -> str:
        words = _both(self.forward_kernel, self.backward_kernel)
        if self.text_forward_kernel:
            words += f", to the text {_both(self.text_forward_kernel, self.text_backward_kernel)}"
        return f"{words}, in a fixed order" if self.deterministic else words


def _both(forward: str, backward: str) -> str:
    return forward if forward == backward else f"{forward} forward, {backward} backward"


CPU = Attention("cpu", "cpu", True, "cpu", "cpu")


def forward(kernel: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if kernel == "cudnn":
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False)
        return out, lse.flatten(2)  # cuDNN's has a last dimension of one
    if kernel == "flash":
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False)
    elif kernel == "flash4":
        out, lse, *_ = _flash4()._flash_attn_fwd(*(t.transpose(1, 2) for t in (q, k, v)), return_lse=True)
        out = out.transpose(1, 2)
    else:
        assert kernel == "cpu", kernel
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False)
    return out, lse


def backward(
    kernel: str,
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    deterministic: bool,
) -> Grads:
    """Gradients of q, k, v. Raises RuntimeError where `deterministic` is asked of a kernel that refuses it; cudnn does
    not refuse, and is not deterministic."""
    T, S = q.shape[2], k.shape[2]
    if kernel in OF_TRITON:
        from engine.kernels import triton_attention  # Triton comes with the CUDA builds of torch alone

        return triton_attention.backward(triton_attention.TILES[kernel], grad, q, k, v, out, lse)
    if kernel == "cudnn-open":
        return cudnn_attention.backward(grad, q, k, v, out, lse, deterministic=deterministic)
    if kernel == "cpu":
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, False)
    elif kernel == "flash4":
        grads = _flash4()._flash_attn_bwd(
            *(t.transpose(1, 2) for t in (q, k, v, out, grad)), lse, deterministic=deterministic
        )
        dq, dk, dv = (t.transpose(1, 2) for t in grads[:3])
    else:
        seed = torch.empty((), dtype=torch.long, device=q.device)  # of the dropout that is off
        with fixed_order(deterministic):
            if kernel == "cudnn":
                dq, dk, dv = aten._scaled_dot_product_cudnn_attention_backward(
                    grad, q, k, v, out, lse[..., None], seed, seed, None, None, None, T, S, 0.0, False
                )
            else:
                state = torch.zeros(2, dtype=torch.uint64, device=q.device)
                dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
                    grad, q, k, v, out, lse, None, None, T, S, 0.0, False, state, seed
                )
    return dq, dk, dv


def backward_of_queries(
    kernel: str,
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    deterministic: bool,
) -> torch.Tensor:
    """The gradient of q alone, as `backward` has it: ours compute no other then."""
    if kernel in OF_TRITON:
        from engine.kernels import triton_attention  # as above

        return triton_attention.backward_of_queries(triton_attention.TILES[kernel], grad, q, k, v, out, lse)
    return backward(kernel, grad, q, k, v, out, lse, deterministic=deterministic)[0]


@cache
def _flash4() -> Any:
    # it compiles its kernels in each process, for seconds each, unless it is told to keep them; its own folder for that
    # lies in /tmp, where others could put code
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(caches_dir() / "flash-attn-4"))
    from flash_attn.cute import interface  # an optional package, and seconds to import

    return interface


def versions() -> dict[str, str]:
    """Of the packages that are installed only on some machines."""
    found = {}
    for package in (TRITON, FLASH4, CUDNN_OPEN):
        with suppress(PackageNotFoundError):
            found[package.name] = version(package.name)
    return found


class KernelBenchmark(NamedTuple):
    """Seconds of each kernel that runs on this card, and why the others do not."""

    forward: dict[str, float]
    backward: dict[str, float]
    refused: dict[str, str]

    @property
    def fastest(self) -> tuple[str, str]:
        """(forward, backward). Raises UserError where there is none."""
        if not (self.forward and self.backward):
            reasons = "; ".join(f"{kernel}: {why}" for kernel, why in self.refused.items())
            raise UserError(
                f"no exact attention runs on this card ({reasons})",
                where="job.gpus",
                fix="Use a card of compute capability 8.0 or newer, or update torch",
            )
        return min(self.forward, key=self.forward.__getitem__), min(self.backward, key=self.backward.__getitem__)

    @property
    def text(self) -> str:
        words = [
            f"{direction} {', '.join(f'{kernel} {s * 1000:.1f} ms' for kernel, s in seconds.items())}"
            for direction, seconds in (("forward", self.forward), ("backward", self.backward))
        ]
        return "; ".join([*words, *(f"{kernel}: {why}" for kernel, why in self.refused.items())])


def benchmark_kernels(
    device: torch.device,
    *,
    tokens: int,
    heads: int,
    width: int,
    dtype: torch.dtype,
    deterministic: bool,
    keys: int | None = None,
) -> KernelBenchmark:
    """Run every kernel on random tensors, forward and backward (those without a forward after the first one's), with as
    many keys as tokens or so many `keys`. One that fails, gives another answer than the first, or promises a fixed
    order and does not keep to it, is refused with the reason. Raises torch.OutOfMemoryError."""
    found = KernelBenchmark({}, {}, {})
    q, grad, k, v = (
        torch.randn(1, rows, heads, width, device=device, dtype=dtype).transpose(1, 2)
        for rows in (tokens, tokens, keys or tokens, keys or tokens)
    )
    repeats = 10 if keys else 2  # few keys take a millisecond
    answer: tuple[torch.Tensor, ...] = ()  # of the first kernel that has one
    gradients: tuple[torch.Tensor, ...] = ()
    for kernel in kernels(device):
        try:
            with memory_errors():  # else cuDNN's own error would count as a fault of the kernel
                if kernel not in BACKWARD_ONLY:
                    seconds, (out, lse) = timed(device, partial(forward, kernel, q, k, v), repeats)
                    answer = answer or (out, lse)
                    _same(answer, (out, lse))
                    found.forward[kernel] = seconds
                elif answer:
                    out, lse = answer
                else:
                    raise RuntimeError("no other kernel goes forward")
                if deterministic and kernel == "cudnn":  # small tensors might hide it from the comparison below
                    raise RuntimeError("its backward adds in no fixed order")
                again = partial(backward, kernel, grad, q, k, v, out, lse, deterministic=deterministic)
                first = again()
                seconds, grads = timed(device, again, repeats)
                if deterministic and not all(torch.equal(a, b) for a, b in zip(first, grads, strict=True)):
                    raise RuntimeError("its backward adds in no fixed order")
                gradients = gradients or grads
                _same(gradients, grads)
                found.backward[kernel] = seconds
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # a card or build without this kernel; compilers of kernels raise what they like
            found.refused[kernel] = _reason(kernel, e)
    return found


def _reason(kernel: str, error: Exception) -> str:
    if isinstance(error, ImportError) and kernel in PACKAGES:
        package = PACKAGES[kernel]
        absent = (error.name or "").startswith(package.module) and package.name not in versions()
        return (
            f"the package {package.name} is not installed"
            if absent
            else f"the package {package.name} is incomplete: {error}"
        )
    return (str(error).splitlines() or [type(error).__name__])[0]


def kernels(device: torch.device) -> list[str]:
    """Those that may run on a card."""
    capability = torch.cuda.get_device_capability(device)
    there = {"flash4": capability[0] in FLASH4_CARDS, "cudnn-open": capability in CUDNN_OPEN_CARDS}
    return [kernel for kernel in KERNELS if there.get(kernel, True)]


def timed(device: torch.device, run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(mean seconds of a call after one that is not counted, its result)"""
    run()
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        result = run()
    _wait(device)
    return (time.perf_counter() - start) / repeats, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _same(theirs: tuple[torch.Tensor, ...], ours: tuple[torch.Tensor, ...]) -> None:
    """Raises RuntimeError."""
    for a, b in zip(ours, theirs, strict=True):
        apart = ((a.float() - b.float()).norm() / b.float().norm()).item()
        if not apart < AGREE:
            raise RuntimeError(f"its answer is {apart:.1%} away from the first kernel's")


def choose(
    device: torch.device, *, tokens: int, heads: int, width: int, dtype: torch.dtype, deterministic: bool
) -> tuple[Attention, str]:
    """(the fastest of the exact kernels on this card, why), measured once, forward and backward by themselves, for the
    self-attention and for the attention to the text."""
    if device.type != "cuda":
        return CPU, "the CPU has one"
    tokens = min(tokens, 16384)  # enough to fill any card; the ranking does not change with length
    measure = partial(
        benchmark_kernels,
        device,
        tokens=tokens,
        heads=heads,
        width=width,
        dtype=dtype,
        deterministic=deterministic,
    )
    found, to_text = measure(), measure(keys=TEXT_TOKENS)
    return (
        Attention(*found.fastest, deterministic, *to_text.fastest),
        f"at {tokens} tokens: {found.text}; to {TEXT_TOKENS} tokens of text: {to_text.text}",
    )
