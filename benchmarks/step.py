"""One training step of an expert of the real shape: a plain baseline and our plans, in one process on one card.

    python -m benchmarks.step --json results.json                 (an NVIDIA card; 64 GiB of host RAM for the long
    clips)
    python -m benchmarks.step --tiny                              (the same code on the CPU, in seconds)
    python -m benchmarks.step --cases 41x512x512:streamed ...     (some cases only)
    python -m benchmarks.step --profile ...                       (and seconds by kind of kernel, of a step, of a pass
    without a graph, of the encodes, and of these and a step)

Random weights, LoRA rank 16 on all ten linears, AdamW, batch 1. The baseline is what most trainers do: the diffusers
model in eager mode, default SDPA, every block checkpointed, bf16, resident, LoRA by peft. Useful TFLOP/s counts forward
and input-gradient work alone: 4 * 11.95e9 * T + 12 * T^2 * 5120 * 40 floating-point operations, no recompute. A whole
step begins with both encodes of the clip, as training on clips does.
"""

import argparse
import gc
import json
import sys
import time
import traceback
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import torch
from diffusers import AutoencoderKLWan
from peft import LoraConfig

from benchmarks.kernel_kinds import by_kind, lines
from benchmarks.random_expert import REAL, TINY, empty_model, expert
from engine.encode.conv_kernels import faster
from engine.encode.latents import encode_pair
from engine.encode.vae_encoder import ClipEncoder
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.memory.measure_card import measure_card
from engine.system.device import open_device
from engine.training.optimizer import clip_gradients, step_if
from engine.wan import attention
from engine.wan.block import LINEARS
from presets.clips.geometry import Bucket
from presets.machine.machine import read_machine
from presets.planner.candidates import with_vae_frames
from presets.planner.cards import gpu_hardware
from presets.planner.choose import choose
from presets.planner.costs import Costs
from presets.planner.plan import Plan, Precision
from presets.planner.workload import Hardware, Load, Workload

GIB = 2**30
LONG = 6  # seconds: a step this long is timed once
MIXED = (512, 768, 1024)  # sides of the clips, 41 frames each, that the plan "mixed" is chosen for
# as many frames through the VAE at once as the planner takes with them
PLANS: dict[str, dict[str, Any]] = {
    "kept": {"resident": 40, "kept": 40, "keep_gelu": True, "activations": "device", "slots": 0},
    "kept-lean": {"resident": 40, "kept": 40, "activations": "device", "slots": 0},
    "kept-20": {"resident": 40, "kept": 20, "activations": "device", "slots": 0},
    "resident": {"resident": 40, "activations": "device", "slots": 0},
    "resident-20": {"resident": 20, "activations": "device"},
    "streamed-device": {"activations": "device"},
    "streamed": {"activations": "host"},
    "streamed-hidden": {"activations": "host", "save_hidden": True},
    "streamed-small": {"activations": "host", "chunk": 4096, "slots": 2},
    "streamed-chunked": {"activations": "host", "chunk": 16384},
    "streamed-chunked-hidden": {"activations": "host", "chunk": 16384, "save_hidden": True},
}
DEFAULT = [
    "41x512x512:baseline",
    "41x512x512:kept",
    "41x512x512:kept-lean",
    "41x512x512:resident",
    "41x512x512:resident-20",
    "41x512x512:streamed-device",
    "41x512x512:streamed",
    "41x512x512:streamed-hidden",
    "41x512x512:streamed-small",
    "41x512x512:mixed",
    "41x768x768:mixed",
    "41x1024x1024:mixed",
    "81x480x832:baseline",
    "81x480x832:streamed-chunked",
    "81x480x832:streamed-chunked-hidden",
    "81x720x1280:streamed-chunked",
]


@dataclass
class Bench:
    """The card, one random expert, and the VAE."""

    device: torch.device
    config: dict[str, Any]
    dtype: torch.dtype
    precision: Precision
    deterministic: bool = True  # the attention, as training.deterministic has it

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any], repeats: int) -> float:
        """Best of `repeats`: what the card can do, not what a neighbour left of it."""
        best = float("inf")
        for _ in range(repeats):
            self.sync()
            start = time.perf_counter()
            run()
            self.sync()
            best = min(best, time.perf_counter() - start)
        return best

    def fresh(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def restart_peaks(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peaks(self) -> dict[str, float]:
        """GiB: allocated, reserved, and the whole card's use by NVML's count."""
        if self.device.type != "cuda":
            return {"peak_gib": 0.0, "reserved_gib": 0.0, "card_gib": 0.0}
        free, total = torch.cuda.mem_get_info()
        return {
            "peak_gib": torch.cuda.max_memory_allocated() / GIB,
            "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
            "card_gib": (total - free) / GIB,
        }


def useful_tflop(tokens: int) -> float:
    return (4 * 11.95e9 * tokens + 12 * tokens**2 * 5120 * 40) / 1e12


def inputs(
    bench: Bench, bucket: Bucket
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    torch.manual_seed(1)
    x = torch.randn(1, 36, *bucket.latent, device=bench.device)
    text = torch.randn(1, 512, bench.config.get("text_dim", 4096), device=bench.device, dtype=bench.dtype)
    target = torch.randn(1, 16, *bucket.latent, device=bench.device)
    return x, torch.tensor([900.0], device=bench.device), text, lambda out: (out.float() - target).square().mean()


def optimizer_step(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> None:
    """As a training takes it."""
    finite = torch.isfinite(clip_gradients(parameters, 1.0))
    step_if(optimizer, finite)
    assert finite
    optimizer.zero_grad(set_to_none=True)


def adamw(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, fused=parameters[0].is_cuda)


def measure(bench: Bench, step: Callable[[], None]) -> dict[str, float]:
    """Warm up (compilation, autotuning), then time the best of three, or one when it is long; peaks of the timed steps
    alone."""
    first = bench.seconds(step, 1)
    bench.restart_peaks()
    seconds = bench.seconds(step, 1)
    if seconds < LONG:
        bench.restart_peaks()
        seconds = min(seconds, bench.seconds(step, 2))
    return {"seconds_per_step": seconds, "first_step_seconds": first, **bench.peaks()}


def baseline(bench: Bench, bucket: Bucket) -> dict[str, float]:
    model = empty_model(bench.config, bench.device, bench.dtype, num_layers=bench.config.get("num_layers", 40))
    model.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=list(LINEARS)))
    parameters = [p for name, p in model.named_parameters() if "lora_" in name]
    for p in parameters:
        p.requires_grad_(True)
        p.data = p.data.float()
    model.enable_gradient_checkpointing()
    model.train()
    optimizer = adamw(parameters)
    x, timestep, text, loss = inputs(bench, bucket)

    def step() -> None:
        loss(model(x.to(bench.dtype), timestep, text, return_dict=False)[0]).backward()
        optimizer_step(optimizer, parameters)

    return measure(bench, step)


def planned(
    bench: Bench,
    bucket: Bucket,
    plan: Plan,
    weights: Any,
    parameters: list[torch.nn.Parameter],
    kernels: attention.Attention,
    vae: AutoencoderKLWan,
    profiled: bool,
) -> dict[str, Any]:
    executor = BlockExecutor(weights, ExecutorResources(plan, kernels, weights.block_bytes, bench.device))
    optimizer = adamw(parameters)
    x, timestep, text, loss = inputs(bench, bucket)

    def step() -> None:
        executor.forward_backward(x, timestep, text, loss)
        optimizer_step(optimizer, parameters)

    result: dict[str, Any] = measure(bench, step)
    if result["seconds_per_step"] < LONG:
        result["predict_seconds"] = bench.seconds(lambda: executor.predict(x, timestep, text), 2)
    both = encodes(bench, bucket, plan, vae)

    def whole() -> None:
        both()
        step()

    whole()
    bench.restart_peaks()
    result["whole_seconds"] = bench.seconds(whole, 1 if result["seconds_per_step"] > LONG else 2)
    result["whole_peak_gib"] = bench.peaks()["peak_gib"]
    if profiled:
        result["profile"] = by_kind(bench.device, step)
        result["profile_predict"] = by_kind(bench.device, lambda: executor.predict(x, timestep, text))
        result["profile_encodes"] = by_kind(bench.device, both)
        result["profile_whole"] = by_kind(bench.device, whole)
    return result


def work_of(bench: Bench, bucket: Bucket) -> Workload:
    """One expert's steps of one clip."""
    return Workload(loads=(Load(bucket, 1, 1.0),), steps=1, ranks=(16,), needed=1, deterministic=bench.deterministic)


def named_plan(bench: Bench, name: str, bucket: Bucket, hardware: Hardware | None) -> Plan:
    plan = Plan(precision=bench.precision, compiled=hardware is not None, **PLANS[name])
    return plan if hardware is None else with_vae_frames(Costs(work_of(bench, bucket), hardware), plan)


def mixed_plan(bench: Bench, hardware: Hardware | None) -> Plan:
    """What the planner chooses on this card for a job of both experts whose clips are of three sizes."""
    if hardware is None:
        return Plan(resident=4, kept=1, also_kept=((96, 3),), compiled=False)
    work = Workload(
        loads=tuple(Load(Bucket(41, side, side), 1, 1 / len(MIXED)) for side in MIXED),
        deterministic=bench.deterministic,
    )
    return choose(work, hardware).plan


def encodes(bench: Bench, bucket: Bucket, plan: Plan, vae: AutoencoderKLWan) -> Callable[[], None]:
    """The VAE's part of a step: target and conditioning."""
    ours = faster(bench.device) if bench.device.type == "cuda" else ""
    encoder = ClipEncoder(vae, frames=plan.vae_frames, compiled=plan.compiled, ours=ours)
    video = torch.rand(1, 3, bucket.frames, bucket.height, bucket.width, device=bench.device) * 2 - 1

    def both() -> None:
        encode_pair(encoder, video)

    return both


def encoded(bench: Bench, bucket: Bucket, plan: Plan, vae: AutoencoderKLWan) -> dict[str, float]:
    both = encodes(bench, bucket, plan, vae)
    both()
    return {"vae_seconds": bench.seconds(both, 2), "vae_peak_gib": bench.peaks()["peak_gib"]}


def hardware_of(bench: Bench) -> Hardware | None:
    """This card with rates measured now; None on the CPU."""
    if bench.device.type != "cuda":
        return None
    machine = read_machine(Path.cwd())
    gpu = machine.gpus[torch.cuda.current_device()]
    return gpu_hardware(gpu, machine, rates=measure_card(gpu, bench.device), idle=True)


def predicted(bench: Bench, plan: Plan, bucket: Bucket, hardware: Hardware) -> dict[str, float]:
    """What the planner says of the same work: one expert's transformer and optimizer, and the VAE's two encodes."""
    costs = Costs(work_of(bench, bucket), hardware)
    plan = msgspec.structs.replace(plan, kept=plan.kept_for(bucket.tokens), also_kept=())
    held = costs.memory.held(plan)
    seconds = costs.time.step(plan)
    return {
        "predicted_peak_gib": (sum(held.values()) - held["vae"] + costs.memory.step(plan)[0]) / GIB,
        "predicted_seconds": seconds.total - seconds.vae,
        "predicted_vae_seconds": seconds.vae,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--precision", choices=typing.get_args(Precision), default="float8")
    parser.add_argument("--cases", nargs="*", default=DEFAULT, metavar="FxHxW:PLAN")
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="attention's backward in a fixed order, as training.deterministic has it",
    )
    parser.add_argument("--profile", action="store_true", help="seconds by kind of kernel")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device = open_device("cpu" if args.tiny else "cuda")
    bench = Bench(
        device,
        TINY if args.tiny else REAL,
        torch.float32 if args.tiny else torch.bfloat16,
        "none" if args.tiny else args.precision,
        args.deterministic,
    )
    if not args.tiny:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    kernels, why = attention.choose(
        device,
        tokens=11264,
        heads=bench.config.get("num_attention_heads", 40),
        width=bench.config.get("attention_head_dim", 128),
        dtype=bench.dtype,
        deterministic=bench.deterministic,
    )
    print(f"attention by {kernels.text}, {why}", flush=True)

    hardware = hardware_of(bench)
    rows: list[dict[str, Any]] = []
    weights: Any = None
    parameters: list[torch.nn.Parameter] = []
    vae: Any = None
    for case in args.cases:
        shape, _, name = case.partition(":")
        frames, height, width = (int(v) for v in shape.split("x"))
        bucket = Bucket(frames, height, width) if not args.tiny else Bucket(5, 32, 48)
        bench.fresh()
        # code that an earlier case had for its one size would do for a plan that is compiled for any
        torch.compiler.reset()
        try:
            if name == "baseline":
                row: dict[str, Any] = {
                    "case": shape,
                    "plan": "baseline: diffusers, eager, SDPA, checkpointed, bf16",
                    **baseline(bench, bucket),
                }
            else:
                if weights is None:
                    start = time.perf_counter()
                    weights, named = expert("high_noise", bench.config, bench.precision, device, bench.dtype)
                    parameters = list(named.values())
                    vae = (
                        AutoencoderKLWan(
                            **({"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} if args.tiny else {})
                        )
                        .to(device, bench.dtype)
                        .eval()
                    )
                    print(
                        f"expert packed as {bench.precision} in {time.perf_counter() - start:.0f} s,"
                        f" {weights.block_bytes / 2**20:.0f} MiB a block",
                        flush=True,
                    )
                plan = mixed_plan(bench, hardware) if name == "mixed" else named_plan(bench, name, bucket, hardware)
                row = {
                    "case": shape,
                    "plan": f"{name}: {plan.text}",
                    "vae_frames": plan.vae_frames,
                    **planned(bench, bucket, plan, weights, parameters, kernels, vae, args.profile),
                }
                bench.fresh()
                row |= encoded(bench, bucket, plan, vae)
                if hardware is not None:
                    row |= predicted(bench, plan, bucket, hardware)
                row["outside_share"] = row["vae_seconds"] / (row["vae_seconds"] + row["seconds_per_step"])
        except Exception:
            print(f"FAILED {case}", flush=True)
            traceback.print_exc(limit=8, file=sys.stdout)
            continue
        same = next((r for r in rows if r["case"] == shape and r["plan"].startswith("baseline")), None)
        row |= {"tokens": bucket.tokens, "attention": "SDPA" if name == "baseline" else kernels.text}
        row["ratio_to_baseline"] = same["seconds_per_step"] / row["seconds_per_step"] if same else None
        row["useful_tflops"] = useful_tflop(bucket.tokens) / row["seconds_per_step"]
        row["host_gib"] = psutil.Process().memory_info().rss / GIB
        rows.append(row)
        show(row)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
    return 0


def show(row: dict[str, Any]) -> None:
    ratio = f"{row['ratio_to_baseline']:.2f}x" if row["ratio_to_baseline"] else "-"
    outside = (
        f", VAE {row['vae_seconds']:.2f} s (outside {row['outside_share']:.0%}, peak {row['vae_peak_gib']:.1f})"
        if "vae_seconds" in row
        else ""
    )
    told = (
        f"; predicted {row['predicted_seconds']:.2f} s, {row['predicted_peak_gib']:.2f} GiB, VAE"
        f" {row['predicted_vae_seconds']:.2f} s"
        if "predicted_seconds" in row
        else ""
    )
    print(
        f"{row['case']:>13} {row['plan']}: {row['seconds_per_step']:.3f} s/step, {ratio}, {row['useful_tflops']:.0f}"
        f" TFLOP/s, peak {row['peak_gib']:.2f} GiB (reserved {row['reserved_gib']:.2f}, card {row['card_gib']:.2f}),"
        f" host {row['host_gib']:.1f}, first {row['first_step_seconds']:.0f} s{outside}{told}",
        flush=True,
    )
    if "whole_seconds" in row:
        share, whole = row["vae_seconds"] / row["whole_seconds"], f"whole step {row['whole_seconds']:.3f} s"
        frames = f"{row['vae_frames']} frames at a time"
        print(f"{'':>13} {whole}, encodes {share:.0%} ({frames}), peak {row['whole_peak_gib']:.2f} GiB", flush=True)
    for name in ("profile", "profile_predict", "profile_encodes", "profile_whole"):
        if name in row:
            print(f"{'':>13} {name}:", flush=True)
            print(*lines(row[name]), sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
