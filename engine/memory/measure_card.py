"""What this card really reaches, measured once per card and driver in a second or two and remembered for the
planner.

They are kept by presets.planner.measured_rates; nothing is chosen here.
"""

import contextlib
import datetime
import time
from collections.abc import Callable
from functools import partial

import torch

from engine.wan import attention
from presets.machine.gpus import Gpu
from presets.planner.measured_rates import AttentionRates, Rates, recall, remember

SIDE = 8192  # of the square products
TOKENS, HEADS, WIDTH = 11264, 40, 128  # of the attention: 41 frames of 512 x 512


def measured_rates(gpu: Gpu, device: torch.device) -> Rates:
    """The remembered rates of this card with this software, or measured now. A state folder that cannot be written only
    means measuring again."""
    known = recall(gpu)
    if known is not None and known.software == software():
        return known
    rates = measure_card(gpu, device)
    torch.cuda.empty_cache()
    with contextlib.suppress(OSError):  # then the next run measures again; nothing else depends on it
        remember(rates)
    return rates


def software() -> str:
    return ", ".join(f"{name} {of}" for name, of in {"torch": torch.__version__, **attention.versions()}.items())


def measure_card(gpu: Gpu, device: torch.device) -> Rates:
    """Copies and memory in GB/s, products in TFLOP/s, attention at a usual training length."""
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    there, other = (torch.empty(2**28, dtype=torch.uint8, device=device) for _ in range(2))
    copy = 2**28 / _seconds(lambda: there.copy_(host, non_blocking=True))
    memory = 2 * 2**28 / _seconds(lambda: there.copy_(other))
    a = torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16)
    product = 2 * SIDE**3 / _seconds(lambda: a @ a)
    fp8 = 0.0
    if gpu.capability >= (8, 9):
        q, one = a.to(torch.float8_e4m3fn), torch.ones(SIDE, 1, device=device)
        scaled = partial(torch._scaled_mm, scale_a=one, scale_b=one.t(), out_dtype=a.dtype, use_fast_accum=True)
        # a build without these kernels for this card: 0, and the planner does without
        with contextlib.suppress(RuntimeError):
            fp8 = 2 * SIDE**3 / _seconds(lambda: scaled(q, q.t()))
    return Rates(
        name=gpu.name,
        uuid=gpu.uuid,
        driver=gpu.driver,
        software=software(),
        copy_gbps=copy / 1e9,
        memory_gbps=memory / 1e9,
        bf16_tflops=product / 1e12,
        fp8_tflops=fp8 / 1e12,
        attention=_attention(device, deterministic=False),
        deterministic_attention=_attention(device, deterministic=True),
        date=datetime.date.today().isoformat(),
    )


def _attention(device: torch.device, *, deterministic: bool) -> AttentionRates:
    found = attention.benchmark_kernels(
        device, tokens=TOKENS, heads=HEADS, width=WIDTH, dtype=torch.bfloat16, deterministic=deterministic
    )
    forward, backward = found.fastest
    work = 4 * TOKENS**2 * HEADS * WIDTH  # operations forward; twice that backward
    return AttentionRates(
        forward, work / found.forward[forward] / 1e12, backward, 2 * work / found.backward[backward] / 1e12
    )


def _seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Mean seconds of one call, after one that is not counted."""
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats
