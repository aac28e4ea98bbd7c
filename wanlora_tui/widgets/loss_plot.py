"""The loss of each expert: every step as a faint point, the trend as a line. The experts differ by marker, not only by
colour."""

import math

from textual.color import Color
from textual_plotext import PlotextPlot

from presets.runs.run_view import StepPoint
from wanlora_tui.output.formatting import expert_text

# expert -> (marker of the trend, marker of single steps, theme variable of the colour)
MARKS = {"high_noise": ("●", "·", "text-accent"), "low_noise": ("○", "'", "text-primary")}
OTHER = ("x", "·", "foreground")
POINTS_PER_COLUMN = 2  # single steps drawn at most; more would only paint the canvas solid
SMOOTHING = 0.06  # of the steps shown: the width of the averaging window


def trend(points: list[StepPoint], columns: int) -> list[StepPoint]:
    """The centred running mean of the loss, at most one point per column.

    The window is a fixed share of the points (at least one), narrower at both ends so that it stays centred.
    """
    if not points:
        return []
    sums = [0.0]
    for p in points:
        sums.append(sums[-1] + p.loss)
    half = max(1, round(len(points) * SMOOTHING / 2))
    stride = max(1, math.ceil(len(points) / max(1, columns)))
    paths = [*range(0, len(points), stride), len(points) - 1]
    out = []
    for i in sorted(set(paths)):
        h = min(half, i, len(points) - 1 - i) if 0 < i < len(points) - 1 else min(half // 2, len(points) - 1)
        low, high = max(0, i - h), min(len(points), i + h + 1)
        out.append(StepPoint(points[i].step, (sums[high] - sums[low]) / (high - low)))
    return out


def thin(points: list[StepPoint], most: int) -> list[StepPoint]:
    """At most `most` of the points, evenly picked, the last one among them."""
    if len(points) <= most:
        return points
    stride = math.ceil(len(points) / most)
    return points[::-1][::stride][::-1]


def loss_range(losses: dict[str, list[StepPoint]]) -> tuple[float, float]:
    """The loss axis: from 0.5% to 99.5% of all steps with a margin, so that one spike does not flatten the rest."""
    values = sorted(p.loss for points in losses.values() for p in points if math.isfinite(p.loss))
    if not values:
        return 0.0, 1.0
    low, high = values[int(0.005 * (len(values) - 1))], values[math.ceil(0.995 * (len(values) - 1))]
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return max(0.0, low - margin), high + margin


class LossPlot(PlotextPlot):
    """Loss over steps. `show` draws a fold's `losses`."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._losses: dict[str, list[StepPoint]] = {}
        self._resumed: list[int] = []

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, lambda _: self._draw())

    def show(self, losses: dict[str, list[StepPoint]], resumed: list[int]) -> None:
        """`resumed`: the steps that an attempt resumed from; each gets a line upright."""
        self._losses, self._resumed = losses, resumed
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        plt, width = self.plt, max(20, self.size.width)
        plt.clear_figure()
        shown = {e: [p for p in points if math.isfinite(p.loss)] for e, points in self._losses.items()}
        shown = {e: points for e, points in shown.items() if points}
        for faint in (True, False):
            for expert, points in shown.items():
                line, dot, colour = MARKS.get(expert, OTHER)
                some = thin(points, POINTS_PER_COLUMN * width) if faint else trend(points, width)
                draw = plt.scatter if faint or len(some) < 2 else plt.plot
                draw(
                    [p.step for p in some],
                    [p.loss for p in some],
                    marker=dot if faint else line,
                    color=self._colour(colour, faint),
                )
        if shown:
            low, high = loss_range(shown)
            steps = [p.step for points in shown.values() for p in points]
            first, last = min(steps), max(max(steps), min(steps) + 1)
            ticks = sorted(
                {float(round(first + (last - first) * i / n)) for n in [max(1, width // 20)] for i in range(n + 1)}
            )
            plt.ylim(low, high)
            plt.xlim(first, last)
            for step in self._resumed:
                if first < step < last:
                    plt.vline(step, color=self._colour("foreground", True))
            plt.xticks(ticks, [f"{t:.0f}" for t in ticks])
        plt.xaxes(True, False)
        plt.yaxes(True, False)
        plt.yfrequency(max(2, self.size.height // 3))
        legend = "  ".join(f"[${MARKS.get(e, OTHER)[2]}]{MARKS.get(e, OTHER)[0]}[/] {expert_text(e)}" for e in shown)
        if shown and self._resumed:
            legend += "  │ resumed at step " + ", ".join(map(str, self._resumed[-3:]))
        self.border_title = f"loss  {legend}" if shown else "loss, from the first step on"
        self.refresh()

    def _colour(self, variable: str, faint: bool) -> tuple[int, int, int]:
        variables = self.app.theme_variables
        colour, ground = Color.parse(variables[variable]), Color.parse(variables["surface"])
        mixed = colour.blend(ground, 0.3) if faint else colour
        return mixed.rgb
