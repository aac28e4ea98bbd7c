"""The whole picture as cells: panels above one axis of steps, with what happened marked on that.

Pure: the same runs, options and size give the same cells. Colours and keys are wanlora_tui.plot.loss_plot's.
"""

from dataclasses import dataclass, field

from rich.cells import cell_len

from presets.text import escaped
from wanlora_tui.plot import layout
from wanlora_tui.plot.braille import Canvas
from wanlora_tui.plot.curves import (
    BRANCH,
    LABEL,
    LINE,
    MARK,
    RULE,
    STRONG,
    Curve,
    column,
    columns_of,
    curve_of,
    draw_line,
    draw_raw,
)
from wanlora_tui.plot.marks import RANK, SIGNS, UPRIGHT, Mark
from wanlora_tui.plot.scale import Scale, labels, scale_of, ticks, whole_ticks
from wanlora_tui.plot.series import LOSS, LR, PlottedRun, Series
from wanlora_tui.plot.window import Window

SMOOTHING = (0.0, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3)  # parts of what is shown that a mean is of
AXIS_ROWS = 2
SIGN_EVERY = 24  # columns between the signs on a line
Row = tuple[list[str], list[int]]  # signs and inks


@dataclass(frozen=True)
class Options:
    """How a user wants it drawn."""

    log: bool = False
    everything: bool = False  # the scale has room for every point, not for the trend alone
    apart: bool | None = None  # a panel for each expert; None: when there is room
    smoothing: int = 4  # of SMOOTHING


@dataclass(frozen=True)
class Figure:
    rows: list[Row]
    whole: Window  # all steps there are
    window: Window  # those shown
    left: int = 0  # columns before the first one of the plot
    columns: int = 0
    curves: list[Curve] = field(default_factory=list)
    marks: dict[int, list[Mark]] = field(default_factory=dict)  # by column; of the first run
    rates: list[Series] = field(default_factory=list)  # of the first run
    apart: bool = False  # each expert's loss has a panel of its own

    def step_at(self, at: float) -> float:
        """The step in the middle of a column."""
        return self.window.low + (at + 0.5) / max(1, self.columns) * self.window.width

    def column_of(self, step: float) -> int:
        return column(step, self.window, 2 * self.columns) // 2


def whole_of(runs: list[PlottedRun]) -> Window | None:
    """From the first to the last step of all runs; None before the first one."""
    known = [steps for run in runs if (steps := run.steps)]
    return Window(min(low for low, _ in known), max(high for _, high in known)) if known else None


def draw(runs: list[PlottedRun], options: Options, window: Window | None, columns: int, rows: int) -> Figure:
    """`window` None: all steps. Whatever has no room is left out."""
    whole = whole_of(runs)
    if whole is None or columns < 4 or rows < 1:
        empty = Window(0, 1)
        return Figure([([" "] * columns, [LABEL] * columns) for _ in range(rows)], whole or empty, window or empty)
    window = window or whole
    foot = AXIS_ROWS if rows >= AXIS_ROWS + 2 else 0
    groups = layout.groups_of(runs, options.apart, rows - foot)
    smoothing = SMOOTHING[options.smoothing]
    panels = []
    for group in groups:
        curves = [curve_of(s, run, side, window, 2 * columns, smoothing) for run, side, s in group.series]
        values = [v for c in curves for v in c.extent(everything=options.everything)]
        scale = scale_of(values, log=options.log and group.log)
        only = set(values) if len(set(values)) == 1 else set()
        marks = [v for v in only if scale.low < v < scale.high] or ticks(scale, max(2, round(group.rows / 2.5)))
        panels.append((group, curves, scale, list(zip(marks, labels(marks), strict=True))))
    widest = max(len(text) for *_, texts in panels for _, text in texts)
    left = widest + 1 if columns >= widest + 16 else 0
    inner = columns - left
    happened = by_column(runs[0].marks, window, inner)
    out: list[Row] = []
    for group, curves, scale, texts in panels:
        canvas = Canvas(inner, group.rows)
        for mark in (m for marks in happened.values() for m in marks):
            if mark.kind in UPRIGHT:
                canvas.upright(column(mark.step, window, canvas.width), RULE)
        for curve in curves:
            if curve.series.noisy and curve.run == 0:  # of all runs they would be a fog
                draw_raw(canvas, curve, window, scale)
        for branch in runs[0].branches:
            side = next((c.side for c in curves if c.run == 0 and c.series.name == branch.name), None)
            if side is not None and branch.panel == group.panel:
                left_curve = curve_of(branch, 0, side, window, canvas.width, max(smoothing, 0.1))
                draw_line(canvas, left_curve, window, scale, BRANCH)
        for curve in reversed(curves):  # the run itself above those it is compared with
            draw_line(canvas, curve, window, scale)
        block = [canvas.row(row) for row in range(group.rows)]
        for i, curve in reversed(list(enumerate(curves))):
            _sign(block, curve, window, scale, i * SIGN_EVERY // len(curves))
        out += _framed(block, left, [(scale.place(v, canvas.height) // 4, text) for v, text in texts])
        if group.title:
            out.insert(len(out) - group.rows, _heading(group.title, columns))
    if foot:
        out += _axis(window, happened, left, inner)
    curves = [curve for _, some, *_ in panels for curve in some]
    rates = [series for series in runs[0].series if series.panel == LR]
    apart = sum(group.panel == LOSS for group in groups) > 1
    return Figure(out, whole, window, left, inner, curves, happened, rates, apart)


def by_column(marks: list[Mark], window: Window, columns: int) -> dict[int, list[Mark]]:
    """The marks within a window by the column they lie in."""
    found: dict[int, list[Mark]] = {}
    for mark in marks:
        if window.low <= mark.step <= window.high:
            found.setdefault(column(mark.step, window, 2 * columns) // 2, []).append(mark)
    return found


def _sign(block: list[Row], curve: Curve, window: Window, scale: Scale, begin: int) -> None:
    """A curve's sign at its end and here and there on its way: what tells lines apart without colour."""
    inside = [(s, v) for s, v in curve.line if window.low <= s <= window.high]
    wanted = begin
    for i, x in enumerate(columns_of([s for s, _ in inside], window, 2 * len(block[0][0]))):
        at = x // 2
        if at >= wanted or i == len(inside) - 1:
            row = scale.place(inside[i][1], 4 * len(block)) // 4
            if 0 <= row < len(block):
                signs, inks = block[row]
                signs[at], inks[at] = curve.sign, LINE + curve.number
                wanted = at + SIGN_EVERY


def _framed(block: list[Row], left: int, texts: list[tuple[int, str]]) -> list[Row]:
    """With the values written before it."""
    if not left:
        return block
    written: dict[int, str] = {}
    for row, text in texts:
        written.setdefault(row, text)
    out = []
    for row, (signs, inks) in enumerate(block):
        text = written.get(row, "")
        before = f"{text:>{left - 1}}{'┤' if text else '│'}"
        out.append(([*before, *signs], [LABEL] * left + inks))
    return out


def _heading(title: str, columns: int) -> Row:
    # a wide sign takes two cells, of which the second holds nothing
    signs = [part for sign in f" {escaped(title)} " for part in (sign, "", "")[: cell_len(sign)]][:columns]
    if signs and cell_len(signs[-1]) > 1:
        signs[-1] = " "
    rest = columns - len(signs)
    return [*signs, *"─" * rest], [STRONG] * len(signs) + [RULE] * rest


def _axis(window: Window, happened: dict[int, list[Mark]], left: int, columns: int) -> list[Row]:
    """The line with ticks and marks, and the steps below it."""
    line, inks = ["─"] * columns, [LABEL] * columns
    numbers = [" "] * columns
    values = whole_ticks(window.low, window.high, max(1, columns // 12))
    free = 0
    for value, text in zip(values, labels([float(v) for v in values]), strict=True):
        at = column(value, window, 2 * columns) // 2
        start = min(max(0, at - len(text) // 2), columns - len(text))
        if 0 <= at < columns:
            line[at] = "┬"
            if start >= free:
                numbers[start : start + len(text)] = text
                free = start + len(text) + 1
    for at, marks in happened.items():
        if 0 <= at < columns:
            line[at] = SIGNS[min(marks, key=lambda m: RANK[m.kind]).kind]
            inks[at] = MARK
    before = [" "] * (left - 1) + ["└"] if left else []
    return [([*before, *line], [LABEL] * left + inks), ([" "] * left + numbers, [LABEL] * (left + columns))]
