"""What the lines under a plot say: the values at the cursor and what happened there, or what its marks mean."""

import time
from collections.abc import Sequence

from rich.cells import cell_len

from presets.text import escaped, loss_text
from wanlora_tui.output.formatting import rate
from wanlora_tui.plot.curves import LABEL, LINE, MARK, STRONG
from wanlora_tui.plot.figure import Figure
from wanlora_tui.plot.marks import RANK, SIGNS, Mark
from wanlora_tui.plot.series import LOSS, LR

Piece = tuple[str, int]  # a text and its ink
GAP = "  "
LEAST_ROWS = 5  # of a plot, from which on there is a line that reads
ROOMY_ROWS = 9  # and as many as are needed
MOST_LINES = 3


def read(figure: Figure, step: float) -> list[Piece]:
    """The step and the marks in that column, which no value may push off the line; the run's values and their means
    there; what is drawn of the runs that it is compared with, their means alone; rate and time; what explains a
    mark."""
    own: list[Piece] = []
    others: list[Piece] = []
    held_out: tuple[list[str], list[str]] = [], []  # of the run itself, and of the others
    when, near = 0.0, max(1.0, figure.window.width / max(1, figure.columns))
    for curve in figure.curves:
        s = curve.series
        if s.panel == LR or not s.steps[0] - near <= step <= s.steps[-1] + near:  # a run has no value beyond its ends
            continue
        at = s.nearest(step)
        mean = f"~{loss_text(s.mean(at, curve.half))}" if s.noisy and curve.half else ""
        values = [loss_text(s.values[at]), mean] if curve.run == 0 or not mean else [mean]
        text = f"{curve.sign} {' '.join(values).rstrip()}"
        if s.panel == LOSS:
            (others if curve.run else own).append((text, LINE + curve.number))
        else:
            held_out[curve.run > 0].append(text)
        if curve.run == 0 and s.times:
            when = max(when, s.times[at])
    for pieces, texts in zip((own, others), held_out, strict=True):
        if texts:  # in one piece, their name once: in 80 columns there is room for both experts'
            pieces.append((f"held-out {' '.join(texts)}", LABEL))
    marks: dict[str, list[Mark]] = {}  # of each kind the nearest first
    for mark in sorted(
        figure.marks.get(figure.column_of(step), []), key=lambda m: (RANK[m.kind], abs(m.step - round(step)))
    ):
        marks.setdefault(mark.kind, []).append(mark)
    named = [
        (f"{SIGNS[kind]} {found[0].text}{f' and {len(found) - 1} more' if found[1:] else ''}", MARK)
        for kind, found in marks.items()
    ]
    rates = {rate(s.values[max(0, s.between(s.steps[0], step)[1] - 1)]): None for s in figure.rates}
    more = [(f"lr {' '.join(rates)}", LABEL)] if rates else []
    if when:
        more.append((time.strftime("%d %b %H:%M", time.localtime(when)), LABEL))
    why = [(f"{SIGNS[kind]} {found[0].why}", LABEL) for kind, found in marks.items() if found[0].why]
    return [(f"step {round(step)}", STRONG), *named, *own, *others, *more, *why]


def in_lines(pieces: Sequence[Piece], columns: int, rows: int) -> list[list[Piece]]:
    """Whole pieces in so many lines, with gaps between them. The last one takes what has no room, and may be longer."""
    lines: list[list[Piece]] = [[] for _ in range(rows)]
    at, used = 0, 0
    for text, ink in pieces:
        cells = cell_len(escaped(text))
        if used and used + len(GAP) + cells > columns and at < rows - 1:
            at, used = at + 1, 0
        if used:
            lines[at].append((GAP, LABEL))
            used += len(GAP)
        lines[at].append((text, ink))
        used += cells
    return lines


def lines_for(pieces: Sequence[Piece], columns: int) -> int:
    """How many lines whole pieces take."""
    return sum(map(bool, in_lines(pieces, columns, len(pieces))))


def lines_below(rows: int, needed: int) -> int:
    """How many a plot of so many rows has below it."""
    return 0 if rows < LEAST_ROWS else min(needed, 1 if rows < ROOMY_ROWS else MOST_LINES)


def legend(figure: Figure) -> list[Piece]:
    """The signs on the axis, each once, with what it stands for."""
    there = {mark.kind for marks in figure.marks.values() for mark in marks}
    return [(f"{sign} {kind}", MARK) for kind, sign in SIGNS.items() if kind in there][::-1]
