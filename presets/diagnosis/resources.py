"""What wears on a run: steps that get slower, memory that creeps up, data that comes too late, previews that take the
time of training.

These findings depend on the clock and on memory, so an interrupted run need not raise the same ones. Each attempt is
judged by itself.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from statistics import median, quantiles
from typing import Any

from presets.findings import Finding
from presets.planner.plan import LESS_MEMORY
from presets.runs.events import Event

TIMING = frozenset({"slower-with-time", "data-starving", "memory-creeping", "memory-tight", "previews-dominate"})
SLOWER, SURELY = 1.3, 1.15  # times as long: the median of the last steps, and three quarters of them
WARM_UP, BASE, RECENT = 3, 20, 60  # steps of a kind that are passed over, make the measure, are judged
BLOCK, BLOCKS = 25, 6  # steps whose least is taken; rises in a row that count as creeping
REMEDY = {
    "data": (
        "datasets",
        (
            "The clips come too slowly: see what else uses the disk and the processors, and lay them on a faster disk"
            " or make them smaller"
        ),
    ),
    "vae": (
        "datasets.resolutions",
        (
            "See whether another program uses the card (nvidia-smi); smaller resolutions and fewer frames make the"
            " encoding lighter"
        ),
    ),
    "transformer": (
        "datasets.resolutions",
        "See whether the card is hot, throttled or used by another program (nvidia-smi)",
    ),
    "optimizer": ("target.rank", "See whether another program uses the card (nvidia-smi)"),
}


class Pace:
    """Steps of the same kind (expert, datasets, resolutions) against the first ones of this attempt under the same
    plan."""

    def __init__(self) -> None:
        self._attempt = 0
        self._reset()

    def _reset(self) -> None:
        self._first: dict[tuple[str, ...], list[dict[str, float]]] = {}
        self._recent: deque[tuple[tuple[str, ...], dict[str, float]]] = deque(maxlen=RECENT)

    def feed(self, event: Event) -> list[Finding]:
        if event.attempt != self._attempt or event.kind == "replanned":
            self._attempt = event.attempt
            self._reset()
        if event.kind != "step":
            return []
        seconds, kind = event.data["seconds"], kind_of(event.data)
        first = self._first.setdefault(kind, [])
        if len(first) < WARM_UP + BASE:
            first.append(seconds)
            return []
        self._recent.append((kind, seconds))
        return list(self._judge()) if len(self._recent) == RECENT else []

    def _judge(self) -> Iterator[Finding]:
        usual = {
            kind: {part: median(s.get(part, 0.0) for s in first[WARM_UP:]) for part in first[-1]}
            for kind, first in self._first.items()
            if len(first) == WARM_UP + BASE
        }
        ratios = [seconds["total"] / max(usual[kind]["total"], 1e-9) for kind, seconds in self._recent]
        if median(ratios) < SLOWER or quantiles(ratios, n=4)[0] < SURELY:
            return
        grown = {
            part: sum(seconds.get(part, 0.0) - usual[kind].get(part, 0.0) for kind, seconds in self._recent)
            for part in REMEDY
        }
        worst = max(grown, key=lambda part: grown[part])
        before, now = (
            median(s)
            for s in (
                [usual[kind]["total"] for kind, _ in self._recent],
                [seconds["total"] for _, seconds in self._recent],
            )
        )
        field, fix = REMEDY[worst]
        text = (
            f"steps take {median(ratios):.1f} times as long as when this attempt began ({before:.2f} s, now {now:.2f}"
            f" s); most of the rise is in the part '{worst}'"
        )
        yield Finding(code="slower-with-time", severity="warning", field=field, message=text, fix=fix)


def kind_of(data: dict[str, Any]) -> tuple[str, ...]:
    """Steps of a kind should take the same time: same expert, and clips of the same datasets and resolutions (ids are
    DATASET/FILE@RESOLUTION).

    Where a step mixes more than two of these there are too many mixtures for any to come often, and their times lie
    close together: one kind.
    """
    parts = sorted(f"{clip.partition('/')[0]}@{clip.rpartition('@')[2]}" for clip in data["clips"])
    return (data["expert"], *parts) if len(set(parts)) <= 2 else (data["expert"], f"mixture of {len(parts)}")


class Starving:
    """The card waits for clips."""

    def __init__(self) -> None:
        self._attempt, self._steps = 0, 0
        self._shares: deque[tuple[float, float]] = deque(maxlen=50)  # seconds for data, share of the step

    def feed(self, event: Event) -> list[Finding]:
        if event.kind != "step":
            return []
        if event.attempt != self._attempt:
            self._attempt, self._steps = event.attempt, 0
            self._shares.clear()
        self._steps += 1
        seconds = event.data["seconds"]
        self._shares.append((seconds.get("data", 0.0), seconds.get("data", 0.0) / max(seconds["total"], 1e-9)))
        if self._steps < 70:
            return []
        waited, share = (median(values) for values in zip(*self._shares, strict=True))
        if share < 0.3 or waited < 0.2:
            return []
        field, fix = REMEDY["data"]
        return [
            Finding(
                code="data-starving",
                severity="warning",
                field=field,
                message=f"{share:.0%} of each step ({waited:.1f} s) goes by waiting for clips to be decoded",
                fix=fix,
            )
        ]


class MemoryGrowth:
    """Memory that rises and rises, and plans that were given up for want of it."""

    def __init__(self, steps: int, *, ram_total_gib: float, vram_total_gib: float) -> None:
        self._steps = steps  # in all
        self._totals = {"ram_gib": ram_total_gib, "vram_gib": vram_total_gib}  # 0: not known
        self._attempt, self._replans = 0, 0
        self._reset()

    def _reset(self) -> None:
        self._seen = 0
        self._block: dict[str, list[float]] = {"ram_gib": [], "vram_gib": []}
        self._least: dict[str, list[float]] = {"ram_gib": [], "vram_gib": []}

    def feed(self, event: Event) -> list[Finding]:
        if event.attempt != self._attempt:
            self._attempt, self._replans = event.attempt, 0
            self._reset()
        match event.kind:
            case "changed" if event.data["field"] == "training.steps":
                self._steps = event.data["new"]
            case "replanned":
                self._replans += 1
                self._reset()
                if self._replans == 2:
                    return [
                        Finding(
                            code="memory-tight",
                            severity="warning",
                            field="datasets.resolutions",
                            message=(
                                "memory ran out twice in this attempt; each time the run continued with a slower plan"
                            ),
                            fix=LESS_MEMORY,
                        )
                    ]
            case "step":
                return list(self._step(event.data))
        return []

    def _step(self, data: dict[str, Any]) -> Iterator[Finding]:
        self._seen += 1
        if self._seen <= 2 * BLOCK:  # everything is still being filled
            return
        for name, block in self._block.items():
            block.append(data[name])
            if len(block) < BLOCK:
                continue
            least = self._least[name]
            least.append(min(block))
            block.clear()
            if finding := self._creeping(name, least[-BLOCKS - 1 :], data["step"]):
                yield finding

    def _creeping(self, name: str, least: list[float], step: int) -> Finding | None:
        rise = least[-1] - least[0]
        if (
            len(least) <= BLOCKS
            or any(b <= a for a, b in itertools.pairwise(least))
            or rise < max(1.0, 0.05 * least[0])
        ):
            return None
        per_step, total, what = (
            rise / (BLOCKS * BLOCK),
            self._totals[name],
            "the memory of the trainer" if name == "ram_gib" else "the card's memory",
        )
        text = f"{what} rose by {rise:.1f} GiB in {BLOCKS * BLOCK} steps and is at {least[-1]:.1f} GiB"
        left = (total - least[-1]) / per_step
        short = total > 0 and left < self._steps - step
        if short:
            text += (
                f"; at this rate the {total:.0f} GiB there are last for {max(0, left):.0f} more steps, and"
                f" {self._steps - step} are to come"
            )
        fix = (
            "Save and resume from time to time (a resume begins with fresh memory); please report it with this run's"
            " events.jsonl"
        )
        return Finding(
            code="memory-creeping",
            severity="warning" if short else "advice",
            field="training.steps",
            message=text,
            fix=fix,
        )


class PreviewTime:
    """Previews that take more time than the training between them."""

    def __init__(self) -> None:
        self._attempt, self._at = 0, 0.0
        self._training = self._previews = 0.0
        self._sets: set[int] = set()

    def feed(self, event: Event) -> list[Finding]:
        if event.attempt != self._attempt:
            self._attempt, self._at, self._training, self._previews, self._sets = (
                event.attempt,
                event.time,
                0.0,
                0.0,
                set(),
            )
        if event.kind == "step":
            self._training += event.data["seconds"]["total"]
        elif event.kind == "sample" and event.data["step"] > 0:
            self._previews += event.time - self._at
            self._sets.add(event.data["step"])
        self._at = event.time
        if event.kind != "sample" or len(self._sets) < 3 or self._previews < max(60.0, self._training):
            return []
        share = self._previews / (self._previews + self._training)
        fix = (
            "Raise sample.every (it can be set while the job runs), or name an accelerator LoRA in sample.accelerator"
            ' and set sample.preset = "quick"'
        )
        return [
            Finding(
                code="previews-dominate",
                severity="advice",
                field="sample.every",
                message=f"previews have taken {share:.0%} of this attempt's time",
                fix=fix,
            )
        ]
