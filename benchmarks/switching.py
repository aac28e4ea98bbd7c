"""What switching experts costs when both are streamed: the same steps with a switch after each, and with none.

None stands for switch_every = 50: a run of STEPS steps of one expert, whose one switch, at its beginning, is a share of
it larger than a fiftieth.

    python -m benchmarks.switching --json switching.json          (an NVIDIA card, 48 GiB of RAM)
    python -m benchmarks.switching --tiny                         (the same code on the CPU)

Two random experts of the real shape in pinned host memory, LoRA rank 16, AdamW, 41x512x512, all blocks streamed,
activations on the host. The two orders take turns, so that a card that warms up or slows down does so for both.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.random_expert import REAL, TINY, expert
from benchmarks.step import Bench, adamw, inputs, optimizer_step
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.system.device import open_device
from engine.wan import attention
from presets.clips.geometry import Bucket
from presets.planner.plan import Plan

STEPS, ROUNDS = 6, 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device = open_device("cpu" if args.tiny else "cuda")
    bench = Bench(
        device,
        TINY if args.tiny else REAL,
        torch.float32 if args.tiny else torch.bfloat16,
        "none" if args.tiny else "float8",
    )
    kernels, _ = attention.choose(device, tokens=11264, heads=40, width=128, dtype=bench.dtype, deterministic=True)
    plan = Plan(precision="none" if args.tiny else "float8", activations="host", compiled=not args.tiny)
    experts = [expert(name, bench.config, bench.precision, device, bench.dtype) for name in ("high_noise", "low_noise")]
    resources = ExecutorResources(plan, kernels, experts[0][0].block_bytes, device)
    executors = [BlockExecutor(weights, resources) for weights, _ in experts]
    parameters = [list(named.values()) for _, named in experts]
    optimizers = [adamw(p) for p in parameters]
    x, timestep, text, loss = inputs(bench, Bucket(5, 32, 48) if args.tiny else Bucket(41, 512, 512))

    def steps(order: list[int]) -> float:
        """Mean seconds of the steps in this order of experts."""
        bench.sync()
        start = time.perf_counter()
        for which in order:
            executors[which].forward_backward(x, timestep, text, loss)
            optimizer_step(optimizers[which], parameters[which])
        bench.sync()
        return (time.perf_counter() - start) / len(order)

    steps([0, 1, 0, 1])  # compilation, pinned buffers, optimizer state
    every, never = [], []
    for turn in range(ROUNDS):
        every.append(steps([0, 1] * (STEPS // 2)))
        never.append(steps([turn % 2] * STEPS))
    row = {
        "case": "41x512x512 switching",
        "plan": plan.text,
        "seconds_every_1": median(every),
        "seconds_every_50": median(never),
        "ratio": median(every) / median(never),
    }
    print(
        f"{row['plan']}: {row['seconds_every_1']:.4f} s/step with switch_every 1, {row['seconds_every_50']:.4f} without"
        f" a switch (as with 50): {row['ratio']:.3f}x"
    )
    if args.json:
        args.json.write_text(json.dumps([row], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
