"""Curves as SVG that stands in a page: no script, readable when the page's style is left out."""

import math
from collections.abc import Sequence

from msgspec import Struct

from presets.report.markup import Markup, element

WIDTH, HEIGHT = 720, 230
LEFT, RIGHT, TOP, BOTTOM = 84, 12, 14, 34
MOST = 240  # points of a curve that is drawn
SMOOTHED = 25  # parts of a curve that a mean is taken over
PLAIN = {"high_noise": "#c2410c", "low_noise": "#0b6fb8"}  # without the page's style


class Place(Struct, frozen=True):
    """A point of a curve: a mean, and the range that it is the mean of or that it may be off by."""

    step: float
    mean: float
    low: float
    high: float


def smoothed(points: Sequence[Place]) -> list[Place]:
    """At most MOST points, each the mean of its neighbours, with the range that the middle 80% of them have."""
    finite = [p for p in points if all(map(math.isfinite, (p.mean, p.low, p.high)))]
    around = max(1, len(finite) // SMOOTHED // 2)
    every = max(1, math.ceil(len(finite) / MOST))
    out = []
    for i in range(len(finite) - 1, -1, -every):
        near = finite[max(0, i - around) : i + around + 1]
        means = sorted(p.mean for p in near)
        edge = len(means) // 10
        mean = math.fsum(means) / len(means)
        out.append(Place(finite[i].step, mean, min(means[edge], mean), max(means[-1 - edge], mean)))
    return out[::-1]


def chart(
    title: str, kind: str, points: Sequence[Place], *, until: int = 0, marked: int | None = None, dots: bool = False
) -> Markup:
    """One curve with its range, over the steps up to `until`, so that curves of one run stand one above the other.
    `kind` names its colour; a vertical line stands at the step `marked`; `dots` show where it was measured."""
    low, high = _limits(points)
    first, last = min(0, points[0].step), max(1, until, points[-1].step)

    def x(step: float) -> float:
        return round(LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        part = (min(max(value, low), high) - low) / (high - low)
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)

    colour = PLAIN.get(kind, "#0b6fb8")
    parts = [element("title", title)]
    for value in _ticks(low, high):
        at = y(value)
        parts += [
            element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid", stroke="#dcdde0"),
            element("text", f"{value:.4g}", x=LEFT - 6, y=at + 4, text_anchor="end"),
        ]
    parts.append(element("text", "step", x=LEFT - 18, y=HEIGHT - 8, text_anchor="end"))
    for step in _ticks(first, last):
        if step == int(step):
            near_end = x(step) > WIDTH - RIGHT - 30
            anchor = "end" if near_end else "middle"
            at = WIDTH - RIGHT if near_end else x(step)
            parts.append(element("text", f"{step:.0f}", x=at, y=HEIGHT - 8, text_anchor=anchor))
    if marked is not None and first <= marked <= last:
        at = x(marked)
        parts.append(element("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_="mark", stroke="#15803d"))
    upper = [f"{x(p.step)} {y(p.high)}" for p in points]
    lower = [f"{x(p.step)} {y(p.low)}" for p in reversed(points)]
    parts += [
        element("path", d=f"M{' L'.join(upper + lower)} Z", class_=f"range {kind}", fill=colour, fill_opacity="0.18"),
        element(
            "path",
            d=f"M{' L'.join(f'{x(p.step)} {y(p.mean)}' for p in points)}",
            class_=f"curve {kind}",
            fill="none",
            stroke=colour,
            stroke_width=2,
        ),
    ]
    if dots:
        parts += [
            element("rect", x=x(p.step) - 2, y=y(p.mean) - 2, width=4, height=4, class_=kind, fill=colour)
            for p in points
        ]
    return element(
        "svg", *parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title
    )


def _limits(points: Sequence[Place]) -> tuple[float, float]:
    """What of the values is shown: all of the curve, and of its range what does not press it flat."""
    means = [p.mean for p in points]
    low, high = min(means), max(means)
    room = high - low
    if room < 1e-9 * abs(high) or room < 1e-100:  # flat, as far as numbers at the side can say
        room = abs(high) if abs(high) > 1e-100 else 1.0
    low, high = max(min(p.low for p in points), low - room), min(max(p.high for p in points), high + room)
    return (low, high) if high - low > 1e-9 * room else (low - room / 2, high + room / 2)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
