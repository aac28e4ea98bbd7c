"""What this card really reaches, measured once for a card, its driver and what brings kernels, and remembered for the
planner. It takes seconds, and longer where our own kernels are compiled for it.

They are kept by presets.planner.measured_rates; nothing is chosen here.
"""

import contextlib
import datetime
from functools import partial

import torch

from engine.encode.conv_kernels import faster
from engine.system.progress import Progress
from engine.system.stopwatch import mean_seconds
from engine.wan import attention
from engine.wan.frozen_linear import frozen_linear
from engine.wan.int8_linear import pack_int8
from presets.machine.gpus import Gpu
from presets.planner.coefficients import FITTED
from presets.planner.measured_rates import AttentionRates, Rates, recall, remember

SIDE = 8192  # of the square products
TOKENS, HEADS, WIDTH = 11264, 40, 128  # of the attention: 41 frames of 512 x 512

# to be raised when ours change, or what is measured of them does: no package's version tells
INT8_KERNELS, ATTENTION_KERNELS, CONVOLUTION_KERNELS = "1", "2", "1"
AGREE = 0.01  # how far the int8 product of the card may be from plain torch's; bf16 rounds by 0.003


def measured_rates(gpu: Gpu, device: torch.device, progress: Progress) -> Rates:
    """The remembered rates of this card with this software, or measured now. A state folder that cannot be written only
    means measuring again."""
    known = recall(gpu)
    if known is not None and known.software == software():
        return known
    progress(0, 1, "measuring this card, once")
    rates = measure_card(gpu, device)
    torch.cuda.empty_cache()
    with contextlib.suppress(OSError):  # then the next run measures again; nothing else depends on it
        remember(rates)
    return rates


def software() -> str:
    """Versions of all that brings kernels: rates of other ones are measured again."""
    known = {
        "torch": torch.__version__,
        **attention.versions(),
        "int8": INT8_KERNELS,
        "attention": ATTENTION_KERNELS,
        "convolutions": CONVOLUTION_KERNELS,
    }
    return ", ".join(f"{name} {of}" for name, of in known.items())


def measure_card(gpu: Gpu, device: torch.device) -> Rates:
    """Copies and memory in GB/s, products in TFLOP/s, attention at a usual training length."""
    host = _host_buffer()
    there, other = (torch.empty(2**28, dtype=torch.uint8, device=device) for _ in range(2))
    copy = 2**28 / mean_seconds(lambda: there.copy_(host, non_blocking=True))
    memory = 2 * 2**28 / mean_seconds(lambda: there.copy_(other))
    a = torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16)
    product = 2 * SIDE**3 / mean_seconds(lambda: a @ a)
    fp8 = 0.0
    if gpu.capability >= (8, 9):
        q, one = a.to(torch.float8_e4m3fn), torch.ones(SIDE, 1, device=device)
        scaled = partial(torch._scaled_mm, scale_a=one, scale_b=one.t(), out_dtype=a.dtype, use_fast_accum=True)
        # a build without these kernels for this card: 0, and the planner does without
        with contextlib.suppress(RuntimeError):
            fp8 = 2 * SIDE**3 / mean_seconds(lambda: scaled(q, q.t()))
    return Rates(
        name=gpu.name,
        uuid=gpu.uuid,
        driver=gpu.driver,
        software=software(),
        copy_gbps=copy / 1e9 / (1.0 if host.is_pinned() else FITTED.unlocked),
        memory_gbps=memory / 1e9,
        bf16_tflops=product / 1e12,
        fp8_tflops=fp8 / 1e12,
        int8_tops=_int8(device) / 1e12,
        attention=_attention(device, deterministic=False),
        deterministic_attention=_attention(device, deterministic=True),
        convolutions=faster(device),
        date=datetime.date.today().isoformat(),
    )


def _int8(device: torch.device) -> float:
    """Operations a second of a frozen linear in int8 forward, rotations and quantizing included. 0 where its kernels do
    not run on this card, or give something else than plain torch does."""
    try:
        return _int8_rate(device) if _int8_is_right(device) else 0.0
    except torch.OutOfMemoryError:  # it says nothing of the card, and what is returned is remembered
        raise
    except Exception:  # Triton's own, of several kinds, or no Triton: the planner does without
        return 0.0


def _int8_is_right(device: torch.device) -> bool:
    """Of a small linear, both ways: as on the CPU, but for roundings that fall the other way."""
    made = torch.Generator().manual_seed(0)
    weight, x, g = (torch.randn(shape, generator=made) for shape in ((512, 768), (300, 768), (300, 512)))
    bias, packed = torch.zeros(512), pack_int8(weight)
    gave = []
    for where in (device, torch.device("cpu")):
        leaf = x.to(where, torch.bfloat16).requires_grad_()
        y = frozen_linear(leaf, tuple(t.to(where) for t in packed), bias.to(where, torch.bfloat16), "int8")
        y.backward(g.to(where, torch.bfloat16))
        assert leaf.grad is not None
        gave.append([t.detach().float().cpu() for t in (y, leaf.grad)])
    return all(float((a - b).norm() / b.norm()) < AGREE for a, b in zip(*gave, strict=True))


def _int8_rate(device: torch.device) -> float:
    x = torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16)
    codes = torch.randint(-127, 128, (SIDE, SIDE), device=device, dtype=torch.int8)
    packed, bias = (codes, torch.ones(SIDE, 1, device=device)), torch.zeros(SIDE, device=device, dtype=x.dtype)
    return 2 * SIDE**3 / mean_seconds(lambda: frozen_linear(x, packed, bias, "int8"))


def _host_buffer() -> torch.Tensor:
    """Page-locked, where the system allows it."""
    try:
        return torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:  # torch.OutOfMemoryError is one, and so is CUDA's own refusal
        return torch.empty(2**28, dtype=torch.uint8)


def _attention(device: torch.device, *, deterministic: bool) -> AttentionRates:
    measure = partial(
        attention.benchmark_kernels,
        device,
        tokens=TOKENS,
        heads=HEADS,
        width=WIDTH,
        dtype=torch.bfloat16,
        deterministic=deterministic,
    )
    found, to_text = measure(), measure(keys=attention.TEXT_TOKENS)
    forward, backward = found.fastest
    work = 4 * TOKENS**2 * HEADS * WIDTH  # operations forward; twice that backward
    return AttentionRates(
        forward,
        work / found.forward[forward] / 1e12,
        backward,
        2 * work / found.backward[backward] / 1e12,
        *to_text.fastest,
    )
