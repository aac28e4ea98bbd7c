"""What the thread that launches the kernels takes for a block, beside what the block takes: short clips wait for it,
unless their blocks are CUDA graphs (`engine.executor.block_graphs`).

    python -m benchmarks.launches                  (an NVIDIA card)
    python -m benchmarks.launches --tiny           (the same code on the CPU, where nothing is launched ahead or
    recorded)
    python -m benchmarks.launches --full --sides 256      (also with no memory left for one of the graphs)

Ten blocks of the real shape with random weights, in a fixed order, all resident or all streamed. "Queued" is the time
until the last kernel of several passes is launched: where it equals the whole, the card waits. "The same bits": loss
and LoRA gradients of two steps are those of the launched blocks. Then the operations that the thread spends most on,
with graphs. With --full the card is filled to the brim before the first recording, and before the first of a backward:
the blocks have to be launched then, with the same bits.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from msgspec.structs import replace
from torch.profiler import ProfilerActivity, profile

from benchmarks.random_expert import REAL, TINY, expert
from benchmarks.step import Bench, inputs
from engine.executor.block_executor import BlockExecutor
from engine.executor.block_graphs import CudaCapture, Replay
from engine.executor.executor_resources import ExecutorResources
from engine.system.device import open_device
from engine.wan import attention
from presets.clips.geometry import Bucket
from presets.planner.plan import Plan, Precision

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


def bits(run: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Loss and gradients of two steps; gradients add up over both."""
    for p in parameters:
        p.grad = None
    losses = [run(), run()]
    return losses + [p.grad.clone() for p in parameters if p.grad is not None]


class Full(CudaCapture):
    """There is no memory for the recording of this number."""

    def __init__(self, device: torch.device, number: int) -> None:
        super().__init__(device)
        self._left = number

    def __call__(self, run: Callable[[], None]) -> Replay:
        self._left -= 1
        if self._left:
            return super().__call__(run)
        ballast = torch.empty(max(0, torch.cuda.mem_get_info()[0] - 2**25), dtype=torch.uint8, device="cuda")
        try:
            return super().__call__(run)
        finally:
            del ballast


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--sides", type=int, nargs="*", default=[256, 384, 512])
    parser.add_argument("--full", action="store_true", help="also with no memory left for a graph")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on the CPU")
    args = parser.parse_args()
    device = open_device("cpu" if args.tiny else "cuda")
    dtype = torch.float32 if args.tiny else torch.bfloat16
    precision: Precision = "none" if args.tiny else "float8"
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
    weights, named = expert("high_noise", config, precision, device, dtype)
    parameters, blocks = list(named.values()), len(weights.blocks.buffers)
    ways = {
        "resident": Plan(precision=precision, resident=blocks, activations="device", slots=0, compiled=not args.tiny),
        "streamed": Plan(precision=precision, activations="host", compiled=not args.tiny),
    }
    run: Callable[[], Any] = bench.sync
    for side, (way, plan) in product([32] if args.tiny else args.sides, ways.items()):
        bucket = Bucket(5 if args.tiny else args.frames, side, side)
        x, t, text, loss = inputs(bench, bucket)
        right: list[torch.Tensor] = []
        before = 0.0
        for graphed in [0] if args.tiny else [0, bucket.tokens]:
            run = bench.sync  # what the last plan held on the card is no part of this one's memory
            bench.fresh()
            executor = BlockExecutor(
                weights,
                ExecutorResources(
                    replace(plan, any_size=plan.compiled, graphed=graphed), kernels, weights.block_bytes, device
                ),
            )
            run, predict = partial(executor.forward_backward, x, t, text, loss), partial(executor.predict, x, t, text)
            del executor
            found = bits(run, parameters)
            right = right or found
            same = all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
            bench.restart_peaks()
            forward = timed(bench, predict, blocks)[1]
            del predict
            queued, whole = timed(bench, run, blocks)
            before = before or whole
            peaks = bench.peaks()
            print(
                f"{bucket.frames}x{side}x{side} {way}, {'graphs' if graphed else 'launched'}: forward {forward:.2f},"
                f" with backward {whole:.2f} ms a block, {before / whole:.2f}x, queued in {queued:.2f}"
                f" ({queued / whole:.0%}), peak {peaks['peak_gib']:.2f} GiB (reserved {peaks['reserved_gib']:.2f},"
                f" card {peaks['card_gib']:.2f}), {'the same bits' if same else 'OTHER BITS'}",
                flush=True,
            )
        for number in (1, blocks) if args.full and not args.tiny else ():  # one a block forward, but for the first
            run = bench.sync
            bench.fresh()
            said: list[str] = []
            resources = ExecutorResources(
                replace(plan, any_size=plan.compiled, graphed=bucket.tokens),
                kernels,
                weights.block_bytes,
                device,
                capture=Full(device, number),
                refused=said.append,
            )
            run = partial(BlockExecutor(weights, resources).forward_backward, x, t, text, loss)
            found = bits(run, parameters)
            same = all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
            whole = timed(bench, run, blocks)[1]
            print(
                f"{bucket.frames}x{side}x{side} {way}, no memory for recording {number}: {said or 'NOT NOTICED'},"
                f" {whole:.2f} ms a block, {'the same bits' if same else 'OTHER BITS'}",
                flush=True,
            )
            del resources
    with profile(activities=[ProfilerActivity.CPU]) as operations:
        run()
        bench.sync()
    print(f"the last of these, {blocks} blocks:")
    print(operations.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS, max_name_column_width=50))
    return 0


if __name__ == "__main__":
    sys.exit(main())
