"""What a plot shows: runs, each with named series of numbers over steps.

What a run view holds is presets.runs.run_view's; how a series is drawn, wanlora_tui.plot.figure's. One more curve is
one more Series in `plotted`: a panel comes with its name.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, compress, islice
from operator import ne, or_

from presets.runs.ranking import Measure, comparable, mean
from presets.runs.run_view import RunView, StepPoint
from wanlora_tui.plot.marks import Best, Mark, marks_of

LOSS, HELD_OUT, LR = "loss", "held-out loss", "lr"
OUTERMOST = 0.005  # of the values at either end
FEW = 20  # points: of fewer, none is left out
SAMPLE = 2000  # values that the outermost are told by: to order all of a long run takes longer than to draw it


@dataclass(frozen=True)
class Series:
    """Numbers over rising steps. `lows` and `highs`: the range of what each point stands for."""

    panel: str  # what it measures: series of one panel share a scale
    name: str  # whose it is: an expert
    steps: list[int]
    values: list[float]
    lows: list[float]
    highs: list[float]
    times: list[float] = field(default_factory=list)  # wall clock of each point
    noisy: bool = True  # a line through its means, and its points behind that

    @cached_property
    def plain(self) -> bool:
        """Whether all values are finite."""
        return all(map(math.isfinite, self.values))

    @cached_property
    def counts(self) -> Sequence[int]:
        """Of the finite values before each point, one more than points."""
        if self.plain:
            return range(len(self.values) + 1)
        return list(accumulate(map(int, map(math.isfinite, self.values)), initial=0))

    @cached_property
    def finite(self) -> list[float]:
        """The values, with nothing in place of those that are not finite."""
        return self.values if self.plain else [v if math.isfinite(v) else 0.0 for v in self.values]

    @cached_property
    def sums(self) -> list[float]:
        """Of the values before each point, one more than points."""
        return list(accumulate(self.finite, initial=0.0))

    @cached_property
    def calm_sums(self) -> list[float]:
        """The same with the few outermost values as near as the others: a scale made by them has room for a trend,
        which no spike flattens."""
        some = self.values[:: 1 + len(self.values) // SAMPLE]
        order = sorted(some if self.plain else filter(math.isfinite, some))
        if len(order) < FEW:
            return self.sums
        low, high = order[math.ceil(OUTERMOST * (len(order) - 1))], order[int((1 - OUTERMOST) * (len(order) - 1))]
        calm = [low if v < low else high if v > high else v for v in self.finite]
        return list(accumulate(calm, initial=0.0))

    def between(self, low: float, high: float) -> tuple[int, int]:
        """The points of the steps from `low` to `high`, as a slice."""
        return bisect_left(self.steps, low), bisect_right(self.steps, high)

    def nearest(self, step: float) -> int:
        """The point nearest to a step. There is one."""
        after = min(bisect_left(self.steps, step), len(self.steps) - 1)
        return after if after == 0 or self.steps[after] - step <= step - self.steps[after - 1] else after - 1

    def mean(self, at: int, half: int) -> float:
        """The mean around a point: of `half` points on either side, at both ends of the series of fewer; not a number
        when none is finite."""
        return self.means([at], half)[0]

    def means(self, places: Sequence[int], half: int, *, calm: bool = False) -> list[float]:
        """The same around many points, or without spikes."""
        sums, counts, last = self.calm_sums if calm else self.sums, self.counts, len(self.values) - 1
        found = []
        for at in places:
            near = max(min(half, at, last - at), half // 2)
            low, high = max(0, at - near), min(last, at + near) + 1
            count = counts[high] - counts[low]
            found.append((sums[high] - sums[low]) / count if count else math.nan)
        return found


@dataclass(frozen=True)
class PlottedRun:
    name: str
    series: list[Series]
    branches: list[Series] = field(default_factory=list)  # that were left: they lead nowhere
    marks: list[Mark] = field(default_factory=list)

    @property
    def steps(self) -> tuple[int, int] | None:
        """The first and the last; None when there is none yet."""
        known = [s.steps for s in self.series if s.steps]
        return (min(s[0] for s in known), max(s[-1] for s in known)) if known else None


def plotted(view: RunView, best: Best | None = None) -> PlottedRun:
    """All that can be drawn of a run, with its best checkpoint where that is known."""
    losses = {expert: points for expert, points in view.losses.items() if points}
    series = [loss_series(expert, points) for expert, points in losses.items()]
    series += held_out_series(view.measured)
    if any(p.lr for points in losses.values() for p in (points[0], points[-1])):  # an older daemon does not tell
        series += [lr_series(expert, points) for expert, points in losses.items()]
    branches = [loss_series(expert, points) for b in view.abandoned for expert, points in b.losses.items() if points]
    return PlottedRun(view.name, series, branches, marks_of(view, series, best))


def loss_series(expert: str, points: list[StepPoint]) -> Series:
    values = [p.loss for p in points]
    same = points[0].low is None  # only a thinned plot has ranges, and then from the first point on
    lows = values if same else [p.loss if p.low is None else p.low for p in points]
    highs = values if same else [p.loss if p.high is None else p.high for p in points]
    return Series(LOSS, expert, [p.step for p in points], values, lows, highs, [p.time for p in points])


def held_out_series(measured: list[Measure]) -> list[Series]:
    """Of each expert, of those measurements that can be compared."""
    there = comparable(measured)
    out = []
    for expert in there[0].losses if there else ():
        values = [mean(m.losses[expert]) for m in there]
        out.append(Series(HELD_OUT, expert, [m.step for m in there], values, values, values, noisy=False))
    return out


def lr_series(expert: str, points: list[StepPoint]) -> Series:
    """Where it changes, the point before and the one after; and both ends."""
    rates = [p.lr for p in points]
    # whether it changes before each point, and after the last one
    turns = [True, *map(ne, rates, islice(rates, 1, None)), True]
    kept = list(compress(range(len(rates)), map(or_, turns, islice(turns, 1, None))))
    values = [rates[i] for i in kept]
    return Series(LR, expert, [points[i].step for i in kept], values, values, values, noisy=False)
