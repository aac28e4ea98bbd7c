"""The points of a loss plot: one for each step, and for several in a row once a run has more steps than a plot needs.

A pure fold, the same in whatever pieces the steps come. What else a view of a run holds is presets.runs.run_view's.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from presets.runs.alike_steps import ShortData
from presets.runs.event_data import MOST_EXPERTS, StepData

MOST_POINTS = 8192  # of an expert: many times what a terminal is wide, so that means and ranges stay what they are


class StepPoint(Struct, array_like=True, gc=False):
    """One point of the loss plot: a step, or several in a row once the plot is thinned."""

    step: int  # the last one of them, with its rate and time
    loss: float  # the mean of them
    lr: float = 0.0
    time: float = 0.0  # wall clock; 0: not known
    low: float | None = None  # the lowest and the highest of them; None: all are the same
    high: float | None = None


def merged(one: StepPoint, other: StepPoint) -> StepPoint:
    """The point that stands for two of as many steps each. Means and peaks stay what they are."""
    ends = [e for p in (one, other) for e in ((p.loss,) if p.low is None or p.high is None else (p.low, p.high))]
    return StepPoint(other.step, one.loss + (other.loss - one.loss) / 2, other.lr, other.time, min(ends), max(ends))


class Thinned(Struct, array_like=True):
    """Of a plot that has more steps than points: each stands for `every` steps, the newest for those so far."""

    every: int
    newest: int  # steps of the newest point; 0 when an attempt has begun since


class Timed(Protocol):
    """A step with its time by the wall clock."""

    @property
    def time(self) -> float: ...
    @property
    def data(self) -> StepData | ShortData: ...


Losses = dict[str, list[StepPoint]]  # by expert


def plot(losses: Losses, thinning: dict[str, Thinned], expert: str, steps: Sequence[Timed]) -> None:
    """Steps of one expert that follow each other become points."""
    points = losses.get(expert)
    if points is None:
        if len(losses) == MOST_EXPERTS:
            return
        points = losses[expert] = []
    thinned, at = thinning.get(expert), 0
    if thinned is None and len(points) + len(steps) <= MOST_POINTS:
        points += [StepPoint(step.data.step, step.data.loss, step.data.lr, step.time) for step in steps]
        return
    values = [step.data.loss for step in steps]
    while at < len(steps):
        if thinned is not None and 0 < thinned.newest < thinned.every:
            more = values[at : at + thinned.every - thinned.newest]
            at += len(more)
            points[-1] = _joined(points[-1], thinned.newest, more, steps[at - 1])
            thinned.newest += len(more)
            continue
        if len(points) >= MOST_POINTS:
            thinned = thinned or thinning.setdefault(expert, Thinned(1, 1))
            while len(points) >= MOST_POINTS:
                odd = len(points) % 2  # then the oldest stays by itself
                points[odd:] = [merged(a, b) for a, b in zip(points[odd::2], points[odd + 1 :: 2], strict=True)]
                thinned.every *= 2
        data = steps[at].data
        points.append(StepPoint(data.step, data.loss, data.lr, steps[at].time))
        at += 1
        if thinned is not None:
            thinned.newest = 1


def _joined(point: StepPoint, count: int, losses: Sequence[float], last: Timed) -> StepPoint:
    """A point of `count` steps, and those that follow it: the same whether they come at once or one by one."""
    mean, low, high = point.loss, point.loss, point.loss
    if point.low is not None and point.high is not None:
        low, high = point.low, point.high
    n = float(count)  # an int would be converted for each
    for loss in losses:
        n += 1.0
        mean += (loss - mean) / n
        if loss < low:
            low = loss
        elif loss > high:
            high = loss
    return StepPoint(last.data.step, mean, last.data.lr, last.time, low, high)
