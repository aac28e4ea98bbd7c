"""What the planner says of everything that was measured on a card and is in benchmarks/results, and by how much it is
off.

    python -m benchmarks.predictions            (no card; a table in Markdown)

The rates of each card are those of the day's results, not of its sheet. One expert, float8, LoRA of rank 16, AdamW,
batch 1, no encodes unless a line says so. Seconds of long clips that were measured before 27 November 2026, with more
passes over the tokens and a whole recomputation, are printed and not counted: the planner speaks of the present code.
"""

import sys
from collections.abc import Iterator
from itertools import chain
from statistics import fmean
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from presets.clips.geometry import Bucket
from presets.planner.costs import Costs
from presets.planner.plan import Plan
from presets.planner.sizes import GIB, ExpertShape
from presets.planner.workload import Hardware, Load, ValidationLoad, Workload

# bf16 787 TFLOP/s, row-wise float8 products about 1500, cuDNN attention 676 forward and 428 backward, pinned copies 55
# GB/s, device copies 4.3 TB/s; in a fixed order backward 341, by ours
H200 = Hardware(
    name="H200",
    capability=(9, 0),
    vram_total=140 * GIB,
    vram_free=139 * GIB,
    ram_total=256 * GIB,
    ram_free=250 * GIB,
    copy_gbps=55,
    bf16_tflops=787,
    fp8_tflops=1500,
    attention_forward_tflops=676,
    attention_backward_tflops=428,
    deterministic_forward_tflops=676,
    deterministic_backward_tflops=341,
    memory_gbps=4300,
)
# the same of an H100: the arithmetic of docs/speed.md; device copies by its sheet
H100 = Hardware(
    name="H100",
    capability=(9, 0),
    vram_total=int(79.6 * GIB),
    vram_free=79 * GIB,
    ram_total=256 * GIB,
    ram_free=250 * GIB,
    copy_gbps=55,
    bf16_tflops=786,
    fp8_tflops=1500,
    attention_forward_tflops=684,
    attention_backward_tflops=428,
    deterministic_forward_tflops=684,
    deterministic_backward_tflops=358,
    memory_gbps=3015,
)
H100_FLASH4 = replace(H100, deterministic_forward_tflops=758, deterministic_backward_tflops=473)  # with flash-attn-4
KEPT = Plan(precision="float8", resident=40, kept=40, activations="device", slots=0)
RESIDENT = replace(KEPT, kept=0)
STREAMED_DEVICE = Plan(precision="float8", activations="device")
STREAMED = Plan(precision="float8")
SOME = replace(STREAMED, resident=24, kept=24)
CHUNKED = replace(STREAMED, chunk=8192)


class Step(Struct, frozen=True, kw_only=True):
    """Steps of one clip under one plan: seconds and GiB as measured; None: not taken."""

    card: Hardware
    clip: tuple[int, int, int]
    plan: Plan
    seconds: float
    forward: float | None = None  # of a pass without a graph
    peak: float | None = None  # allocated
    reserved: float | None = None
    deterministic: bool = True
    blocks: int = 40
    terms: int = 1
    extra_forwards: int = 0
    only_blocks: bool = False  # neither optimizer nor what else a step has
    earlier: bool = False  # seconds of code that took more passes

    @property
    def costs(self) -> Costs:
        work = Workload(
            loads=(Load(Bucket(*self.clip), 1, 1.0),),
            ranks=(16,),
            needed=1,
            deterministic=self.deterministic,
            terms=self.terms,
            extra_forwards=self.extra_forwards,
        )
        return Costs(work, self.card, ExpertShape(layers=self.blocks))

    @property
    def said(self) -> float:
        found = self.costs.step(self.plan)
        return found.transformer + found.copies + (0.0 if self.only_blocks else found.other)

    @property
    def said_forward(self) -> float:
        return max(self.costs.time.forward(self.plan, self.costs.work.loads[0]))

    @property
    def said_memory(self) -> tuple[float, float]:
        """(allocated, reserved) in GiB: there was no VAE."""
        memory = self.costs.memory
        held = memory.held(self.plan)
        used, lost = memory.step(self.plan)
        base = sum(held.values()) - held["vae"]
        return (base + used) / GIB, (base + used + lost) / GIB


def _any_order(
    clip: tuple[int, int, int],
    plan: Plan,
    peak: float,
    reserved: float,
    seconds: float,
    forward: float | None,
) -> Step:
    return Step(
        card=H200,
        clip=clip,
        plan=plan,
        seconds=seconds,
        forward=forward,
        peak=peak,
        reserved=reserved,
        deterministic=False,
        earlier=True,
    )


def _in_order(card: Hardware, clip: tuple[int, int, int], plan: Plan, peak: float, seconds: float, **more: Any) -> Step:
    return Step(card=card, clip=clip, plan=plan, seconds=seconds, peak=peak, earlier=True, **more)


# Steps by where in benchmarks/results they are from
LONG: dict[str, list[Step]] = {
    "2026-11-22-h200/step.json": [
        _any_order((41, 512, 512), KEPT, 115.30, 116.07, 1.365, 0.491),
        _any_order((41, 512, 512), RESIDENT, 25.77, 26.55, 1.675, 0.473),
        _any_order((41, 512, 512), replace(STREAMED_DEVICE, resident=20), 20.20, 20.97, 1.685, 0.477),
        _any_order((41, 512, 512), STREAMED_DEVICE, 13.65, 14.42, 1.688, 0.476),
        _any_order((41, 512, 512), STREAMED, 5.69, 6.12, 1.692, 0.474),
        _any_order((41, 512, 512), replace(STREAMED, chunk=4096, slots=2), 4.64, 4.72, 1.866, 0.61),
        _any_order((41, 512, 512), SOME, 72.75, 73.52, 1.543, 0.479),
        _any_order((41, 768, 768), replace(SOME, kept=14), 87.55, 88.64, 5.308, 1.514),
        _any_order((41, 1024, 1024), replace(SOME, kept=8), 88.01, 90.22, 13.976, None),
        _any_order((81, 480, 832), CHUNKED, 8.71, 9.14, 8.665, None),
        _any_order((81, 720, 1280), CHUNKED, 16.16, 16.84, 36.83, None),
    ],
    "2026-11-22-h200/step-deterministic.json": [
        _in_order(H200, (41, 512, 512), KEPT, 115.30, 1.531, reserved=116.07),
        _in_order(H200, (41, 512, 512), STREAMED, 5.70, 1.875, reserved=6.12),
        _in_order(H200, (41, 512, 512), replace(SOME, activations="device"), 74.60, 1.668, reserved=75.02),
        _in_order(H200, (81, 480, 832), CHUNKED, 8.62, 10.355, reserved=9.14),
        _in_order(H200, (81, 720, 1280), CHUNKED, 16.07, 43.609, reserved=16.72),
    ],
    "2026-11-27-one-h100": [_in_order(H100, (41, 512, 512), STREAMED, 5.70, 1.992)],
    "2026-11-27-fewer-passes": [
        Step(card=H100_FLASH4, clip=(41, 512, 512), plan=plan, peak=peak, reserved=held, seconds=seconds, forward=ahead)
        for plan, peak, held, seconds, ahead in (
            (STREAMED, 5.79, 6.18, 1.599, 0.470),
            (replace(KEPT, kept=20), 69.75, 70.12, 1.458, 0.468),
        )
    ],
}
# steps that wait for the thread which launches, or nearly
SHORT: dict[str, list[Step]] = {
    "2026-11-22-h200/launches.txt (10 blocks)": [
        Step(
            card=H200,
            clip=(21, side, side),
            plan=replace(RESIDENT, resident=10),
            blocks=10,
            seconds=seconds,
            forward=forward,
            only_blocks=True,
        )
        for side, forward, seconds in ((256, 0.0493, 0.2134), (384, 0.0620, 0.2074), (512, 0.0654, 0.2103))
    ],
    # means over the undisturbed and the resumed run from each start's third step on: of 384 between 1.22 and 1.94, of
    # 512 between 1.93 and 2.06
    "2026-11-22-h200/events-*.jsonl (5 passes)": [
        Step(
            card=H200,
            clip=(21, side, side),
            plan=replace(STREAMED, resident=20, kept=2),
            terms=2,
            extra_forwards=1,
            seconds=seconds,
            only_blocks=True,
        )
        for side, seconds in ((384, 1.622), (512, 1.969))
    ],
    "2026-11-27-one-h100 (10 blocks)": [
        Step(
            card=H100,
            clip=(21, side, side),
            plan=replace(RESIDENT, resident=10) if resident else STREAMED,
            blocks=10,
            seconds=seconds,
            only_blocks=True,
        )
        for side, resident, seconds in (
            (256, True, 0.2016),
            (256, False, 0.2318),
            (512, True, 0.2315),
            (512, False, 0.2386),
        )
    ],
    "2026-11-27-one-h100": [Step(card=H100, clip=(21, 256, 256), plan=KEPT, seconds=0.551, peak=38.7)],
}
# Held-out losses on that H100: three clips of 21x384x384, eight passes each, with their encodes. The first of three
# measurements compiled
HELD_OUT = ValidationLoad(clips=((Bucket(21, 384, 384), 3.0),), passes=8, times=3)
MEASUREMENTS = (6.2, 7.1)


def held_out() -> float:
    work = Workload(loads=(Load(Bucket(21, 512, 512), 1, 1.0),), validation=HELD_OUT)
    return Costs(work, H100).time.validation(KEPT)


class Line(Struct, frozen=True):
    source: str
    what: str
    measured: float
    said: float
    unit: str
    counted: bool = True

    @property
    def off(self) -> float:
        return self.said / self.measured - 1


def lines() -> Iterator[Line]:
    for source, steps in chain(LONG.items(), SHORT.items()):
        for step in steps:
            what = f"{step.card.name}, {'x'.join(map(str, step.clip))}, {step.plan.text.removeprefix('float8, ')}" + (
                "" if step.deterministic else ", in any order"
            )
            yield Line(source, what, step.seconds, step.said, "s", not step.earlier)
            if step.forward is not None:
                yield Line(source, f"{what}: a pass forward", step.forward, step.said_forward, "s", not step.earlier)
            for measured, said, word in zip(
                (step.peak, step.reserved), step.said_memory, ("allocated", "reserved"), strict=True
            ):
                if measured is not None:
                    yield Line(source, f"{what}: {word}", measured, said, "GiB")
    what = "H100, a held-out loss of three clips of 21x384x384, in the mean of two"
    yield Line("2026-11-27-one-h100", what, fmean(MEASUREMENTS), held_out(), "s")


def main() -> int:
    found = list(lines())
    print("| from | what | measured | planner | off by |\n|---|---|---|---|---|")
    for line in found:
        print(
            f"| {line.source} | {line.what} | {line.measured:.3f} {line.unit} | {line.said:.3f} {line.unit} |"
            f" {line.off:+.1%}{'' if line.counted else ', earlier code'} |"
        )
    print()
    for unit, word, within in (("s", "seconds", 0.10), ("GiB", "GiB", 0.05)):
        offs = [abs(line.off) for line in found if line.unit == unit and line.counted]
        print(
            f"{len(offs)} figures in {word}: off by {fmean(offs):.1%} in the mean, {max(offs):.1%} at most,"
            f" {sum(off <= within for off in offs)} within {within:.0%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
