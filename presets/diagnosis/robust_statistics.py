"""Whether a series of numbers rises or falls, as medians tell it from noise. Plain Python: a few hundred numbers at a
time.

What such a trend means is presets.diagnosis.diagnosis's.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import median

from msgspec import Struct

SCALE = 1.4826  # standard deviation of a normal distribution / its median absolute deviation
MEDIAN_ERROR = 1.2533  # standard error of a median / that of a mean, normal distribution: sqrt(pi / 2)


class Trend(Struct, frozen=True):
    """From an early stretch of a series to a late one."""

    before: float  # medians
    after: float
    z: float  # the difference in its standard errors: above 5 is no accident

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before > 0 else 1.0


def spread(values: Sequence[float]) -> float:
    """A standard deviation that outliers do not move."""
    middle = median(values)
    return SCALE * median(abs(v - middle) for v in values)


def trend_of(early: Sequence[float], late: Sequence[float]) -> Trend:
    """How two stretches differ; both hold at least one number."""
    before, after = median(early), median(late)
    error = MEDIAN_ERROR * sqrt(spread(early) ** 2 / len(early) + spread(late) ** 2 / len(late))
    floor = 1e-3 * max(abs(before), abs(after), 1e-12)  # numbers that are all alike have no spread
    return Trend(before, after, (after - before) / max(error, floor))


def smoothed(values: Sequence[tuple[int, float]]) -> list[float]:
    """Each (bin, value) as a multiple of its bin's median over the whole series: what is left is not the bin's
    doing."""
    bins: dict[int, list[float]] = {}
    for bin_, value in values:
        bins.setdefault(bin_, []).append(value)
    usual = {bin_: median(found) for bin_, found in bins.items()}
    return [value / usual[bin_] if usual[bin_] > 0 else 1.0 for bin_, value in values]
