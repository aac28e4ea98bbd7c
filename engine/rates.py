"""What this card really reaches, measured once per card and driver in a second or two and remembered for the planner."""

import contextlib
import datetime
import time
from collections.abc import Callable

import torch

from engine import attention
from presets.machine import Gpu
from presets.planner.rates import Rates, recall, remember

SIDE = 8192  # of the square products
TOKENS, HEADS, WIDTH = 11264, 40, 128  # of the attention: 41 frames of 512 x 512


def rates_of(gpu: Gpu, device: torch.device) -> Rates:
    """The remembered rates of this card, or measured now. A state folder that cannot be written only means measuring again."""
    known = recall(gpu)
    if known is not None:
        return known
    rates = measure(gpu, device)
    torch.cuda.empty_cache()
    with contextlib.suppress(OSError):  # then the next run measures again; nothing else depends on it
        remember(rates)
    return rates


def measure(gpu: Gpu, device: torch.device) -> Rates:
    """Copies and memory in GB/s, products in TFLOP/s, attention at a usual training length."""
    backend, _ = attention.choose(device, tokens=TOKENS, heads=HEADS, width=WIDTH, dtype=torch.bfloat16)
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    there, other = (torch.empty(2**28, dtype=torch.uint8, device=device) for _ in range(2))
    copy = 2**28 / _seconds(lambda: there.copy_(host, non_blocking=True))
    memory = 2 * 2**28 / _seconds(lambda: there.copy_(other))
    a = torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16)
    product = 2 * SIDE**3 / _seconds(lambda: a @ a)
    fp8 = 0.0
    if gpu.capability >= (8, 9):
        q, one = a.to(torch.float8_e4m3fn), torch.ones(SIDE, 1, device=device)
        with contextlib.suppress(RuntimeError):  # a build without these kernels for this card: 0, and the planner does without
            fp8 = 2 * SIDE**3 / _seconds(lambda: torch._scaled_mm(q, q.t(), scale_a=one, scale_b=one.t(), out_dtype=torch.bfloat16, use_fast_accum=True))
    q, k, v = (torch.randn(1, HEADS, TOKENS, WIDTH, device=device, dtype=torch.bfloat16) for _ in range(3))
    out, lse = attention.forward(backend, q, k, v)
    work = 4 * TOKENS**2 * HEADS * WIDTH
    forward = work / _seconds(lambda: attention.forward(backend, q, k, v))
    backward = 2 * work / _seconds(lambda: attention.backward(backend, out, q, k, v, out, lse))
    return Rates(
        name=gpu.name, uuid=gpu.uuid, driver=gpu.driver, copy_gbps=copy / 1e9, memory_gbps=memory / 1e9, bf16_tflops=product / 1e12, fp8_tflops=fp8 / 1e12,
        attention=backend, attention_forward_tflops=forward / 1e12, attention_backward_tflops=backward / 1e12, date=datetime.date.today().isoformat(),
    )  # fmt: skip


def _seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Mean seconds of one call, after one that is not counted."""
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats
