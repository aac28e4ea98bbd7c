"""What the thread that launches the kernels takes for a block, beside what the block takes: short clips wait for it.

    python -m benchmarks.launches                  (an NVIDIA card)
    python -m benchmarks.launches --tiny           (the same code on the CPU, where nothing is launched ahead)

Ten blocks of the real shape with random weights, all resident, in a fixed order. "Queued" is the time until the last
kernel of several passes is launched: where it equals the whole, the card waits. The baseline leaves
CUBLAS_WORKSPACE_CONFIG set, which torch 2.11 reads before every product (see `engine.system.device.products_in_order`).
Then the operations that the thread spends most on.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.random_expert import REAL, TINY, expert
from benchmarks.step import Bench, inputs
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.system.device import CUBLAS_WORKSPACE, open_device
from engine.wan import attention
from presets.clips.geometry import Bucket
from presets.planner.plan import Plan

BLOCKS, PASSES = 10, 3
ROWS = 20  # of the table of operations


def timed(bench: Bench, run: Callable[[], Any], blocks: int) -> tuple[float, float]:
    """(queued, whole) in ms a block"""
    run()
    bench.sync()
    start = time.perf_counter()
    for _ in range(PASSES):
        run()
    queued = time.perf_counter() - start
    bench.sync()
    return queued / PASSES / blocks * 1e3, (time.perf_counter() - start) / PASSES / blocks * 1e3


def set_variable(bench: Bench, value: str | None) -> None:
    """Buffers that were made for one size must not be taken for another: they are made anew."""
    bench.sync()
    os.environ.pop(CUBLAS_WORKSPACE[0], None)
    if value:
        os.environ[CUBLAS_WORKSPACE[0]] = value
    if bench.device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--sides", type=int, nargs="*", default=[256, 384, 512])
    parser.add_argument("--tiny", action="store_true", help="toy sizes on the CPU")
    args = parser.parse_args()
    device = open_device("cpu" if args.tiny else "cuda")
    dtype = torch.float32 if args.tiny else torch.bfloat16
    precision = "none" if args.tiny else "float8"
    config = TINY if args.tiny else {**REAL, "num_layers": BLOCKS}
    bench = Bench(device, config, dtype, precision)
    kernels, why = attention.choose(
        device,
        tokens=4096,
        heads=config.get("num_attention_heads", 40),
        width=config.get("attention_head_dim", 128),
        dtype=dtype,
        deterministic=True,
    )
    print(
        f"{'CPU' if args.tiny else torch.cuda.get_device_name()}, torch {torch.__version__}, attention by"
        f" {kernels.text}, {why}",
        flush=True,
    )
    weights, _ = expert("high_noise", config, precision, device, dtype)
    blocks = len(weights.blocks.buffers)
    plan = Plan(
        precision=precision, resident=blocks, activations="device", slots=0, compiled=not args.tiny, any_size=True
    )
    executor = BlockExecutor(weights, ExecutorResources(plan, kernels, weights.block_bytes, device))
    for side in [32] if args.tiny else args.sides:
        bucket = Bucket(5 if args.tiny else args.frames, side, side)
        x, t, text, loss = inputs(bench, bucket)
        passes = {
            "forward": lambda x=x, t=t, text=text: executor.predict(x, t, text),
            "forward and backward": lambda x=x, t=t, text=text, loss=loss: executor.forward_backward(x, t, text, loss),
        }
        for name, run in passes.items():
            left = os.environ.get(CUBLAS_WORKSPACE[0])  # set still, where torch asks every time
            set_variable(bench, CUBLAS_WORKSPACE[1])
            _, baseline = timed(bench, run, blocks)
            set_variable(bench, left)
            queued, whole = timed(bench, run, blocks)
            print(
                f"{bucket.frames}x{side}x{side} {name}: {whole:.2f} ms a block, queued in {queued:.2f}"
                f" ({queued / whole:.0%}); baseline {baseline:.2f}, {baseline / whole:.2f}x",
                flush=True,
            )
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
        bench.sync()
    print(f"the last of these, {blocks} blocks:")
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS, max_name_column_width=50))
    return 0


if __name__ == "__main__":
    sys.exit(main())
