"""Streams that run late or ahead change nothing: losses and LoRA gradients, bit for bit, with sleeps put between the
copies.

    python -m benchmarks.races                  (an NVIDIA card with 6 GiB free; more than two minutes)
    python -m benchmarks.races --tiny           (the same code on the CPU, where there are no streams)

Both experts in turn, of the real width and with random weights, batch 2, two clip sizes. Each plan runs undelayed, then
with its copies delayed (a sleep on the copy stream before each one), then with the computing delayed (a sleep before
each block, so that copies run ahead). The reference is the same plan with everything resident.
tests/engine/executor/test_races.py proves the order of events; this shows it on the card, and last that it can fail:
without the wait for a slot's copy results must differ. Exit code 0 when every case is as it should be, 1 otherwise.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from benchmarks.random_expert import REAL, TINY, expert
from engine.executor.activation_offload import OffloadedActivations
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.executor.expert_weights import ExpertWeights
from engine.executor.weight_ring import WeightRing
from engine.system.device import open_device
from engine.wan.attention import Attention, choose
from presets.planner.plan import Plan, Precision

BLOCKS = 6
SIZES = ((3, 48, 48), (2, 32, 40), (3, 48, 48))  # latent frames, height, width: 1728 and 640 tokens
TINY_SIZES = ((2, 4, 6), (1, 4, 6))
PLANS: dict[str, dict[str, Any]] = {
    "activations on the host, 3 buffers": {"slots": 3},
    "activations on the host, 2 buffers": {"slots": 2},
    "activations on the host, 2 buffers, chunked": {"slots": 2, "chunk": 700},
    "activations on the device, 3 buffers, chunked": {"slots": 3, "chunk": 700, "activations": "device"},
    "2 resident, 1 kept, 2 slots": {"slots": 2, "resident": 2, "kept": 1},
}
MICROSECONDS = 10000  # of each sleep: more than a copy or a block takes
CYCLES = 1700  # of torch.cuda._sleep in a microsecond, about

Delay = Callable[[], None]


@contextmanager
def delayed(what: str) -> Iterator[None]:
    """Inside, `what` ("copies", "computing" or nothing) is late by a sleep each time; or copies are, and nobody waits
    for them."""
    if not what:
        yield
        return
    write, put, prefetch, take = (
        WeightRing._write,
        OffloadedActivations.put,
        OffloadedActivations.prefetch,
        WeightRing.take,
    )

    def sleep() -> None:
        torch.cuda._sleep(MICROSECONDS * CYCLES)

    def on(stream: Any) -> None:
        if stream is not None:
            with torch.cuda.stream(stream):
                sleep()

    def late_write(self: WeightRing, visit: Any) -> None:
        on(self.stream)
        write(self, visit)

    def late_put(self: OffloadedActivations, block: int, tensors: Any) -> None:
        on(self._out)
        put(self, block, tensors)

    def late_prefetch(self: OffloadedActivations, block: int) -> None:
        on(self._in)
        prefetch(self, block)

    def late_take(self: WeightRing, visit: int) -> torch.Tensor:
        if self.device.type == "cuda":
            sleep()
        return take(self, visit)

    def hasty_take(self: WeightRing, visit: int) -> torch.Tensor:
        return self.buffers[self._visits[visit].buffer]

    changes: list[tuple[Any, str, Any]] = [
        (WeightRing, "_write", late_write),
        (OffloadedActivations, "put", late_put),
        (OffloadedActivations, "prefetch", late_prefetch),
    ]
    if what == "computing":
        changes = [(WeightRing, "take", late_take)]
    elif what == "copies, nobody waits":
        changes = [(WeightRing, "_write", late_write), (WeightRing, "take", hasty_take)]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def steps(
    experts: list[ExpertWeights],
    plan: Plan,
    kernels: Attention,
    sizes: tuple[tuple[int, int, int], ...],
    text_dim: int,
    device: torch.device,
) -> list[torch.Tensor]:
    """Losses and gradients of both experts in turn, two terms each with a pass without a graph before them."""
    resources = ExecutorResources(plan, kernels, experts[0].block_bytes, device)
    runs = [BlockExecutor(weights, resources) for weights in experts]
    out: list[torch.Tensor] = []
    for turn, (f, h, w) in enumerate(sizes):
        g = torch.Generator(device).manual_seed(turn)
        x, target = (
            torch.randn(2, 36, f, h, w, generator=g, device=device),
            torch.randn(2, 16, f, h, w, generator=g, device=device),
        )
        text, t = torch.randn(2, 64, text_dim, generator=g, device=device), torch.tensor([900.0, 300.0], device=device)
        for weights, run in zip(experts, runs, strict=True):
            parameters = [p for lora in weights.lora for pair in lora.values() for p in pair]
            for p in parameters:
                p.grad = None
            base = run.predict(x, t, text, strength=0.0)
            for goal in (target, base):
                out.append(run.forward_backward(x, t, text, lambda y, goal=goal: (y.float() - goal).square().mean()))  # type: ignore[misc]
            out += [p.grad.cpu() for p in parameters if p.grad is not None]
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy experts; without a GPU nothing is delayed")
    parser.add_argument("--precision", default="float8", choices=("none", "float8", "qint8", "qint4"))
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not args.tiny:
        print("The real width needs a GPU; on this machine use --tiny.", file=sys.stderr)
        return 2
    device = open_device()
    precision: Precision = args.precision if cuda else "none"
    config = TINY if args.tiny else {**REAL, "num_layers": BLOCKS}
    sizes = TINY_SIZES if args.tiny else SIZES
    kernels, _ = choose(
        device,
        tokens=11264,
        heads=config.get("num_attention_heads", 40),
        width=config.get("attention_head_dim", 128),
        dtype=torch.bfloat16 if cuda else torch.float32,
        deterministic=True,
    )
    if not cuda:
        torch.set_num_threads(1)  # toy tensors: a second thread only waits for the first
    torch.manual_seed(0)
    dtype = torch.bfloat16 if cuda else torch.float32
    experts = [
        replace(expert(name, config, precision, device, dtype)[0], name=name) for name in ("high_noise", "low_noise")
    ]
    blocks, failed = len(experts[0].blocks.buffers), 0
    print(
        f"{torch.cuda.get_device_name() if cuda else 'CPU'}, torch {torch.__version__}, {blocks} blocks of"
        f" {experts[0].block_bytes / 2**20:.0f} MiB, {precision}, attention by {kernels.text}"
    )
    for name, changes in PLANS.items():
        own = {**changes, "chunk": 5} if args.tiny and "chunk" in changes else changes
        plan = Plan(precision=precision, compiled=False, **own)
        resident = replace_plan(plan, blocks)

        def run(which: Plan, delay: str = "") -> list[torch.Tensor]:
            with delayed(delay):
                return steps(experts, which, kernels, sizes, config.get("text_dim", 4096), device)

        reference = run(resident)
        cases: dict[str, tuple[Plan, str]] = {
            "everything resident, again": (resident, ""),
            "undelayed": (plan, ""),
            "copies delayed": (plan, "copies"),
            "copies run ahead": (plan, "computing"),
        }
        if cuda and name == next(reversed(PLANS)):
            cases["nobody waits for copies"] = (plan, "copies, nobody waits")
        for case, (which, delay) in cases.items():
            start = time.perf_counter()
            ours = run(which, delay)
            different = sum(not torch.equal(a, b) for a, b in zip(ours, reference, strict=True))
            wrong = (different > 0) != delay.endswith("waits")
            failed += wrong
            verdict = f"{'FAIL' if wrong else 'PASS'} ({different} of {len(ours)} differ)"
            print(f"{name:<32} {case:<28} {time.perf_counter() - start:6.1f} s   {verdict}", flush=True)
    return 1 if failed else 0


def replace_plan(plan: Plan, blocks: int) -> Plan:
    """The same operations with nothing to copy: every block resident, kept ones kept, activations on the device."""
    return Plan(
        precision=plan.precision,
        resident=blocks,
        kept=plan.kept,
        activations="device",
        chunk=plan.chunk,
        slots=0,
        compiled=False,
    )


if __name__ == "__main__":
    sys.exit(main())
