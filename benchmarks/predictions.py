"""What the planner says of everything that was measured on a card and is in benchmarks/results, and by how much it is
off.

    python -m benchmarks.predictions            (no card; a table in Markdown)

The rates of each card are those of the day's results, not of its sheet (benchmarks.measured_steps). The planner speaks
of the present code: on its figures it is held to 10% in time and 5% in memory (tests/presets/planner/test_costs.py).
The others are history: printed, and not counted.
"""

import sys
from collections.abc import Iterator
from statistics import fmean

from msgspec import Struct

from benchmarks.measured_steps import CODES, ENCODES, MEASUREMENTS, PRESENT, STEPS, Step, held_out


class Line(Struct, frozen=True):
    source: str
    what: str
    measured: float
    said: float
    unit: str
    code: str = PRESENT

    @property
    def off(self) -> float:
        return self.said / self.measured - 1


def _kernels(step: Step) -> str:
    if not step.deterministic:
        return ", in any order"
    return ", flash-attn-4" if step.card.deterministic_kernels[1] == "flash4" else ""


def _named(clip: tuple[int, int, int]) -> str:
    return "x".join(map(str, clip))


def lines() -> Iterator[Line]:
    for source, steps in STEPS.items():
        for step in steps:
            plan = step.plan.text.removeprefix("float8, ")
            what = f"{step.card.name}, {_named(step.clip)}, {plan}{_kernels(step)}"
            yield Line(source, what, step.seconds, step.said, "s", step.code)
            if step.forward is not None:
                yield Line(source, f"{what}: a pass forward", step.forward, step.said_forward, "s", step.code)
            for measured, said, word in zip(
                (step.peak, step.reserved), step.said_memory, ("allocated", "reserved"), strict=True
            ):
                if measured is not None:
                    yield Line(source, f"{what}: {word}", measured, said, "GiB", step.code)
    for source, encodes in ENCODES.items():
        for one in encodes:
            what = f"{one.card.name}, both encodes of {_named(one.clip)}, {one.frames} frames at a time"
            yield Line(source, what, one.seconds, one.said, "s", one.code)
    what = "H100, a held-out loss of three clips of 21x384x384, in the mean of two"
    yield Line("2026-11-27-one-h100", what, fmean(MEASUREMENTS), held_out(), "s", "2026-11-22")


def main() -> int:
    found = list(lines())
    for code, what in reversed(CODES.items()):
        of_code = [line for line in found if line.code == code]
        print(f"## {'The present code' if code == PRESENT else 'History'}, of {code}: {what}\n")
        print("| from | what | measured | planner | off by |\n|---|---|---|---|---|")
        for line in of_code:
            figures = f"{line.measured:.3f} {line.unit} | {line.said:.3f} {line.unit} | {line.off:+.1%}"
            print(f"| {line.source} | {line.what} | {figures} |")
        print()
        for unit, word, within in (("s", "seconds", 0.10), ("GiB", "GiB", 0.05)):
            offs = [abs(line.off) for line in of_code if line.unit == unit]
            if not offs:
                continue
            print(
                f"{len(offs)} figures in {word}: off by {fmean(offs):.1%} in the mean, {max(offs):.1%} at most,"
                f" {sum(off <= within for off in offs)} within {within:.0%}"
            )
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
