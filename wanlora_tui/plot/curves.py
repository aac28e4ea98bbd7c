"""One series as it is drawn: which of its points, the line through their means, and where both lie on a canvas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from wanlora_tui.plot.braille import LAYER, Canvas
from wanlora_tui.plot.scale import Scale
from wanlora_tui.plot.series import Series
from wanlora_tui.plot.window import Window

# inks: the layer, and in it the curve's number; labels and uprights are of layer 0
NOTHING, RULE, LABEL, MARK, STRONG = range(5)
RAW, BRANCH, LINE = 1 * LAYER, 2 * LAYER, 3 * LAYER
FEW = 8  # points on either side that a mean is of, while there are not many
RAW_PER_COLUMN = 4  # points drawn in a column of dots at most, the lowest and the highest among them


def pattern(*lengths: int) -> tuple[bool, ...]:
    """So many dots drawn, so many left out, and so on."""
    return tuple(i % 2 == 0 for i, length in enumerate(lengths) for _ in range(length))


# of the first run, the second ...: the line, and the signs of its first and second expert
DASHES = (pattern(1), pattern(6, 3), pattern(2, 2), pattern(8, 2, 2, 2))
SIGNS = (("●", "○"), ("■", "□"), ("▲", "△"), ("★", "☆"))
MOST_RUNS = len(SIGNS)
LEFT_DASH = pattern(2, 1)


@dataclass(frozen=True)
class Curve:
    """`run` and `side`: the numbers of its run and, within that, of its name. `half`: points on either side of one that
    its mean is of."""

    series: Series
    run: int
    side: int
    first: int  # of its points that are in the window, as a slice
    last: int
    half: int
    line: list[tuple[int, float]]  # steps and means
    calm: list[float]  # these means without spikes, within the window

    @property
    def number(self) -> int:
        return 2 * self.run + self.side % 2

    @property
    def sign(self) -> str:
        return SIGNS[self.run][self.side % 2]

    def extent(self, *, everything: bool) -> list[float]:
        """Values that the scale must have room for."""
        if everything and self.last > self.first:
            inside = slice(self.first, self.last)
            return [*self.series.lows[inside], *self.series.highs[inside]]
        return self.calm or [v for _, v in self.line]


def curve_of(series: Series, run: int, side: int, window: Window, columns: int, smoothing: float) -> Curve:
    """`columns` of dots; `smoothing`: the part of the points shown that a mean is of."""
    first, last = series.between(window.low, window.high)
    half = 0
    if series.noisy and smoothing:  # of a few points a small part would be nothing
        half = max(round(smoothing * (last - first) / 2), min(FEW, (last - first) // 8))
    # one beyond either edge, so that the line reaches it
    begin, end = max(0, first - 1), min(len(series.steps), last + 1)
    count = end - begin
    places = range(begin, end) if count <= columns else [begin + i * (count - 1) // columns for i in range(columns + 1)]
    line = zip([series.steps[i] for i in places], series.means(places, half), strict=True)
    inside = [i for i in places if first <= i < last]
    calm = series.means(inside, half, calm=True) if series.noisy else [series.values[i] for i in inside]
    return Curve(series, run, side, first, last, half, [(s, v) for s, v in line if math.isfinite(v)], calm)


def column(step: float, window: Window, width: int) -> int:
    """The column of dots that a step lies in."""
    return columns_of([step], window, width)[0]


def columns_of(steps: Sequence[float], window: Window, width: int) -> list[int]:
    """The same of many."""
    low, wide, last = window.low, window.width, width - 1
    return [round((step - low) / wide * last) for step in steps] if wide else [width // 2] * len(steps)


def draw_raw(canvas: Canvas, curve: Curve, window: Window, scale: Scale) -> None:
    """Single points; of many in a column of dots the lowest, the highest and some between."""
    s, count = curve.series, curve.last - curve.first
    if count <= RAW_PER_COLUMN * canvas.width and s.lows is s.values:
        shown = slice(curve.first, curve.last)
        xs, values = columns_of(s.steps[shown], window, canvas.width), s.values[shown]
    else:
        groups = min(max(1, canvas.width), count)
        edges = [curve.first + group * count // groups for group in range(groups + 1)] if groups else []
        picked = (
            (min(s.lows[low:high]), max(s.highs[low:high]), s.values[low], s.values[(low + high) // 2])
            for low, high in pairwise(edges)
        )
        xs = [x for x in columns_of([s.steps[low] for low in edges[:-1]], window, canvas.width) for _ in range(4)]
        values = [*chain.from_iterable(picked)]
    # each dot once: of many points most share theirs
    canvas.dots(dict.fromkeys(zip(xs, scale.places(values, canvas.height), strict=True)), RAW + curve.number)


def draw_line(canvas: Canvas, curve: Curve, window: Window, scale: Scale, layer: int = LINE) -> None:
    dash = LEFT_DASH if layer == BRANCH else DASHES[curve.run]
    xs = columns_of([step for step, _ in curve.line], window, canvas.width)
    ys = scale.places([value for _, value in curve.line], canvas.height)
    canvas.line(zip(xs, ys, strict=True), layer + curve.number, dash)
