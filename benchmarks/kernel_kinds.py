"""Seconds of a piece of work by kind of kernel, and those in which no kernel ran, as the profiler sees them; for the
other benchmarks."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = (  # what the names of kernels hold; the first that fits
    ("copies to the device", r"Memcpy HtoD"),
    ("copies to the host", r"Memcpy DtoH"),
    ("copies on the device, fills", r"Memcpy|Memset"),
    ("attention backward, ours", r"^_of_keys|^_of_queries|^_delta$"),
    ("attention, flash-attn-4", r"kernel_cutlass.*(?i:flash)|flash_attn_?cute"),
    ("attention, cuDNN", r"(?i)cudnn.*(sdpa|flash|fmha|attention)"),
    ("attention backward, torch's flash", r"flash_bwd"),
    ("attention forward, torch's flash", r"flash_fwd"),
    ("convolutions", r"(?i)conv|implicit|fprop"),
    ("compiled token-wise work", r"^triton_"),  # before the others: its names hold those of what it is fused with
    ("rows quantized and rotated", r"^rowwise_e4m3|^rotated_"),
    ("LoRA's parts, norms with rope, ours", r"^low_rank_kernel|^norm_rope_kernel"),
    ("float8 and int8 products", r"(?i)e4m3|f8|fp8|s8_|int8|rowwise|^nvjet_\w*_qq|^product_kernel"),
    ("bf16 products", r"(?i)gemm|cublas|nvjet|cutlass"),
)
LARGEST = 8  # of those of no kind, that are printed by name
KEPT = 80  # kernels that are told with their names
IDLE = 12  # pauses that are told with what came before and after


def by_kind(device: torch.device, run: Callable[[], Any]) -> dict[str, Any]:
    """Of one call. Copies run beside the rest, so the sum may be more than the call took."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        run()
        if cuda:
            torch.cuda.synchronize(device)
    kinds: dict[str, dict[str, float]] = {}
    names: list[tuple[float, int, str, str]] = []
    for event in found.key_averages():
        seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        kind = next((kind for kind, holds in KINDS if re.search(holds, event.key)), "others")
        names.append((seconds, event.count, kind, event.key[:200]))
        entry = kinds.setdefault(kind, {"seconds": 0.0, "calls": 0})
        entry["seconds"] += seconds
        entry["calls"] += event.count
    return {
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1]["seconds"])),
        "largest": sorted(names, reverse=True)[:KEPT],
        **(_pauses(found) if cuda else {}),
    }


def _pauses(found: profile) -> dict[str, Any]:
    """`idle`: seconds between the first kernel and the last in which none ran; `pauses`: the longest, (seconds, kernel
    before, kernel after). Copies between host and device are none of these kernels."""
    events = found.events()
    assert events is not None
    kernels = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in events
        if event.device_type == DeviceType.CUDA and not re.search(r"HtoD|DtoH|^##|^Torch-|^Compiled", event.name)
    )
    pauses: list[tuple[float, str, str]] = []
    end, last = kernels[0][:1] + kernels[0][2:]
    for start, stop, name in kernels:
        if start > end:
            pauses.append(((start - end) / 1e6, last[:80], name[:80]))
        if stop > end:
            end, last = stop, name
    return {"idle": sum(p[0] for p in pauses), "pauses": sorted(pauses, reverse=True)[:IDLE]}


def lines(found: dict[str, Any]) -> Iterator[str]:
    for kind, entry in found["kinds"].items():
        yield f"{entry['seconds']:>20.3f} s {entry['calls']:>6}  {kind}"
    if "idle" in found:
        yield f"{found['idle']:>20.3f} s         no kernel"
        yield from (f"{seconds:>30.4f} s  {before[:40]} | {after[:40]}" for seconds, before, after in found["pauses"])
    others = [(seconds, name) for seconds, _, kind, name in found["largest"] if kind == "others"]
    for seconds, name in others[:LARGEST]:
        yield f"{seconds:>30.3f} s  {name[:100]}"
