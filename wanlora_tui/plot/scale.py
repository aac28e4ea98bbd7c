"""An axis: which value lies where, and the round numbers that are written beside it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from presets.text import rate_text

ROUND = (1, 2, 5)
MARGIN = 0.08  # of what is shown, above and below it
LARGEST = 1e13  # that is written with a suffix
FARTHEST = 1e4  # from the least to the largest of them
HUGEST = 1e300  # beyond it, margins and differences are infinite
SUFFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Scale:
    """From `low` to `high`, which differ; both are above 0 where it is `log`."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float, size: int) -> int:
        """The dot row of `size` that a value lies in, 0 at the top; beyond either end, outside."""
        return self.places([value], size)[0]

    def places(self, values: Iterable[float], size: int) -> list[int]:
        """The same of many; what is not finite lies outside, too."""
        low, span = self.low, self.high - self.low
        if self.log:  # 0 at the low end, 1 at the high one
            span = math.log(self.high / low)
            parts = [math.log(v / low) / span if v > 0 else -1.0 for v in values]
        else:
            parts = [(v - low) / span for v in values]
        # far outside all is the same; not a number is not above -1
        return [round((1 - (2.0 if p > 2.0 else p if p > -1.0 else -1.0)) * (size - 1)) for p in parts]


def scale_of(values: list[float], *, log: bool = False) -> Scale:
    """A scale that the finite values fill but for a margin. Equal ones lie in the middle. Those that a log scale has no
    place for are left out."""
    shown = [v for v in values if abs(v) < HUGEST and (v > 1 / HUGEST or not log)]
    if not shown:
        return Scale(0.1, 1.0, True) if log else Scale(0.0, 1.0)
    low, high = min(shown), max(shown)
    if log:
        wider = (high / low) ** MARGIN if high > low * (1 + 1e-9) else 1.1
        return Scale(low / wider, high * wider, True)
    margin = MARGIN * (high - low) if high - low > 1e-9 * abs(high) else 0.1 * abs(high) or 0.5
    return Scale(max(0.0, low - margin) if low >= 0 else low - margin, high + margin)


def round_step(span: float, most: int) -> float:
    """The least of 1, 2 and 5 times a power of ten that parts a span into at most so many."""
    wanted = span / max(1, most)
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(r * power for r in (*ROUND, 10, 20) if r * power >= wanted * (1 - 1e-9))


def ticks(scale: Scale, most: int) -> list[float]:
    """At most about so many round values within a scale, evenly apart, or by 1, 2 and 5 on a log scale; at least two,
    for one alone says nothing of how far apart values are."""
    most = max(2, most)
    if scale.log:
        first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
        for factors in (ROUND, (1,)):
            found = [f * 10.0**e for e in range(first, last + 1) for f in factors]
            found = [v for v in found if scale.low <= v <= scale.high]
            if 2 <= len(found) <= most:
                return found
        if len(found) > most:
            return found[:: math.ceil(len(found) / most)]
    found = []
    while len(found) < 2:
        step = round_step(scale.high - scale.low, most)
        first = math.ceil(scale.low / step - 1e-9)
        found = [i * step for i in range(first, math.floor(scale.high / step + 1e-9) + 1)]
        most += 1
    return found


def whole_ticks(low: float, high: float, most: int) -> list[int]:
    """The same for steps: whole numbers that are not negative."""
    found = ticks(Scale(low, max(high, low + 1)), most)
    return sorted({round(v) for v in found if v >= 0 and abs(v - round(v)) < 1e-6 and v <= high}) or [round(low)]


def labels(values: list[float]) -> list[str]:
    """All values of an axis in one notation: with as many digits as tell them apart, as rates (1e-4) when they are very
    small, very large or far apart, else with k, M or G when they are large."""
    if not values:
        return []
    sizes = [abs(v) for v in values if v] or [1.0]
    largest = max(sizes)
    if largest < 1e-2 or largest >= min(LARGEST, FARTHEST * min(sizes)):
        written = ([rate_text(v, digits) for v in values] for digits in range(3, 18))
        return next(texts for texts in written if len(set(texts)) == len(values))
    unit, suffix = next(((u, s) for u, s in SUFFIXES if largest >= 10 * u), (1.0, ""))
    scaled = [v / unit for v in values]
    for digits in range(8):
        texts = [f"{v:.{digits}f}" for v in scaled]
        if all(abs(float(t) - v) <= 1e-6 * max(map(abs, scaled)) for t, v in zip(texts, scaled, strict=True)):
            break
    return [t + suffix if v else "0" for t, v in zip(texts, scaled, strict=True)]
