"""The table of jobs: what stands in a row, and which columns the terminal has room for."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from rich.text import Text
from textual import events
from textual.message import Message

from daemon.wire.protocol import ENDED_STATES, JobRecord
from presets.runs.run_view import RunView
from presets.text import escaped, loss_text
from wanlora_tui.actions import bindings
from wanlora_tui.feeds.run_times import left_text
from wanlora_tui.output.formatting import gpus_text, seconds_each, shorten
from wanlora_tui.output.queue_words import clock_time, speaks, standing
from wanlora_tui.widgets import long_table
from wanlora_tui.widgets.long_table import LongTable

LEAST_NAME, USUAL_NAME, MOST_NAME = 15, 32, 64  # columns
PADDING = 2  # of a column, both sides
SCROLLBAR = 1

HEADERS = {
    "name": "NAME",
    "state": "STATE",
    "step": "STEP",
    "expert": "EXPERT",
    "loss": "LOSS",
    "pace": "S/STEP",
    "eta": "ETA",
    "gpu": "GPU",
    "started": "STARTED",
    "finished": "FINISHED",
    "submitted": "SUBMITTED",
}
ALWAYS = ("name", "state", "step")
# what comes only where the longest name, as far as it is no longer than this, still has its room
BESIDE = {
    **dict.fromkeys(("eta", "loss", "gpu"), LEAST_NAME),
    **dict.fromkeys(("pace", "expert"), USUAL_NAME),
    **dict.fromkeys(("finished", "started", "submitted"), MOST_NAME),
}
NOTHING = "-"
ETA_OR_END = "ETA/END"  # the same column, where the time of the end has none of its own


class JobTable(LongTable, inherit_bindings=False):
    """The table with the keys that act on the job under the cursor."""

    DEFAULT_CSS = """
    JobTable:focus, JobTable:focus .long-table--header { background-tint: $foreground 5%; }
    JobTable .long-table--cursor { text-style: $block-cursor-text-style; }
    JobTable .long-table--rest {
        background: $block-cursor-blurred-background; color: $block-cursor-blurred-foreground;
        text-style: $block-cursor-blurred-text-style;
    }
    """
    BINDINGS = bindings(
        "jobs.open",
        "jobs.stop",
        "jobs.resume",
        "jobs.cancel",
        "jobs.hold",
        "jobs.earlier",
        "jobs.later",
        "jobs.remove",
        "jobs.rename",
        "jobs.duplicate",
        "jobs.priority",
        "jobs.copy",
        "jobs.folder",
        "list.down",
        "list.up",
        "list.top",
        "list.bottom",
        "rows.down",
        "rows.up",
        "rows.page_down",
        "rows.page_up",
        "rows.top",
        "rows.bottom",
    )

    class Resized(Message):
        """It has room for other columns."""

    @dataclass
    class HeadingClicked(Message):
        """`column`: its key, as in HEADERS."""

        column: str

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.keys: list[str] = []  # of the columns
        self.texts: Callable[[int], list[str]] = lambda row: []  # of a row, by column

    def cells(self, row: int) -> list[Text]:
        return [Text(f" {text}") for text in self.texts(row)]

    def show(self, columns: list["Column"], count: int) -> None:
        self.keys = [column.key for column in columns]
        self.set_rows([long_table.Column(f" {c.header}", c.width + PADDING - 1) for c in columns], count)

    def _ground(self, row: int) -> str:
        ground = super()._ground(row)
        return ground if ground != "long-table--odd" else ""  # no stripes

    def on_resize(self) -> None:
        super().on_resize()
        self.post_message(self.Resized())

    def on_click(self, event: events.Click) -> None:
        super().on_click(event)
        event.prevent_default()  # the same of the base class, a second time
        ends = accumulate(width + 1 for width in self.widths())
        if event.y == 0 and (column := next((k for k, end in zip(self.keys, ends, strict=True) if event.x < end), "")):
            self.post_message(self.HeadingClicked(column))


class Column(NamedTuple):
    key: str
    width: int
    header: str


def cells_of(record: JobRecord, view: RunView | None, now: float) -> dict[str, str]:
    """Column -> its text, of every column; `-` where there is nothing to say."""
    live = view is not None and speaks(record, view)
    paused = view is not None and live and view.phase.name == "paused"
    step = view.step if view is not None and live else record.step
    cells = {
        "name": escaped(record.name),
        "state": "‖ paused" if paused else standing(record),
        "step": f"{step}/{record.steps or (view.steps if view else 0)}",
        "gpu": gpus_text(record, view),
        "started": _when(record.started_at, now),
        "finished": _when(record.finished_at if record.state in ENDED_STATES else 0.0, now),
        "submitted": _when(record.submitted_at, now),
    }
    if view is not None and live:
        training = view.phase.name == "training"
        cells |= {
            "expert": view.expert.removesuffix("_noise") if training else view.phase.name,
            "loss": loss_text(view.loss) if view.step else "",
            "pace": seconds_each(view.seconds_per_step) if view.seconds_per_step else "",
            "eta": left_text(record, view),
        }
    return {key: escaped(cells.get(key, "")) or NOTHING for key in HEADERS}


def _length(text: str) -> int:
    return 0 if text == NOTHING else len(text)


def _when(at: float, now: float) -> str:
    return clock_time(at, now) if at else ""


def layout(rows: Iterable[dict[str, str]], width: int, before: Sequence[Column] = ()) -> list[Column]:
    """The columns that `width` has room for, each as wide as its widest cell, or as it was `before`: a number that
    grows and shrinks moves nothing. A name of a usual length is whole before pace and expert get columns, a longer
    one is cut in its middle; a column that says nothing in any row takes none."""
    widest = dict.fromkeys(HEADERS, 0)
    for row in rows:
        for key, text in row.items():
            widest[key] = max(widest[key], _length(text))
    says_eta = widest["eta"] > 0
    if widest["finished"]:
        widest["eta"] = max(widest["eta"], widest["finished"], len(ETA_OR_END))
    for column in before:
        if widest[column.key] and column.key != "name":
            widest[column.key] = max(widest[column.key], column.width)
    names = max(len(HEADERS["name"]), min(MOST_NAME, widest["name"]))
    room = width - SCROLLBAR
    taken = 0
    chosen = []
    for key in (*ALWAYS, *BESIDE):
        if key != "name" and not widest[key]:
            continue
        need = max(len(HEADERS[key]), widest[key]) + PADDING
        if key in ALWAYS or taken + need + min(names, BESIDE[key]) + PADDING <= room:
            chosen.append(key)
            taken += need if key != "name" else 0
    if "finished" in chosen and "eta" in chosen and not says_eta:  # its times have a column of their own
        chosen.remove("eta")
        taken -= max(len(HEADERS["eta"]), widest["eta"]) + PADDING
    left = max(1, room - taken - PADDING)
    headers = HEADERS | ({"eta": ETA_OR_END} if widest["finished"] and "finished" not in chosen else {})
    return [
        Column(key, min(names, left) if key == "name" else max(len(HEADERS[key]), widest[key]), headers[key])
        for key in HEADERS
        if key in chosen
    ]


def _nearest(job: int, before: list[int], now: list[int]) -> int:
    """The job, or the nearest of the list as it was that is in it still: below it, else above."""
    at = before.index(job) if job in before else 0
    return next((j for j in (job, *before[at:], *before[:at][::-1]) if j in now), -1)


class Rows:
    """What a JobTable holds, changed where a row has changed and drawn anew only where the columns or the order
    have."""

    def __init__(self, table: JobTable) -> None:
        self._table = table
        self.order: list[int] = []
        self._stamps: dict[int, tuple[object, ...]] = {}
        self._cells: dict[int, dict[str, str]] = {}
        self._columns: list[Column] = []
        self._width = 0  # that they were chosen for
        self._seen = dict.fromkeys(HEADERS, 0)  # how wide a cell may be before they are chosen anew

    def forget_others(self, jobs: Collection[int]) -> None:
        """But not those that a filter hides: the next letter may bring hundreds of them back."""
        if len(self._cells) > len(jobs):
            self._cells = {job: cells for job, cells in self._cells.items() if job in jobs}
            self._stamps = {job: stamp for job, stamp in self._stamps.items() if job in jobs}

    def show(self, records: list[JobRecord], views: dict[int, RunView], at: int) -> None:
        """`at`: the job that the cursor goes to, or stays on; where it is gone, the next one after it that is there."""
        now, today, changed = time.time(), time.localtime().tm_yday, []
        for r in records:
            view = views.get(r.id)
            stamp = (r.revision, r.state, r.position, r.step, view.last_seq if view else -1, today)
            if self._stamps.get(r.id) != stamp:
                self._stamps[r.id] = stamp
                cells = cells_of(r, view, now)
                if cells != self._cells.get(r.id):
                    self._cells[r.id] = cells
                    changed.append(r.id)
        order = [r.id for r in records]
        shown = [self._cells[job] for job in order]
        columns = self._columns
        width = self._table.size.width or self._table.screen.size.width
        others = order != self.order or width != self._width
        if others or any(map(self._outgrows, changed)):
            self._width = width
            # of other rows, or in another room, it does not matter what was there before
            columns = layout(shown, width, () if others else self._columns)
            # of a column that nobody needed any more, and has gone, nothing is known that it could come back by
            kept = {column.key: column.width for column in columns}
            self._seen = {key: max((kept.get(key, 0), *(_length(cells[key]) for cells in shown))) for key in HEADERS}
        if order != self.order or columns != self._columns:
            at = _nearest(at, self.order, order)
            self.order, self._columns = order, columns
            self._table.texts = self._texts
            self._table.show(columns, len(order))
            self._table.move_cursor(order.index(at) if at in order else 0)
            return
        if changed:
            self._table.draw_changed()
        if at in order:
            self._table.move_cursor(order.index(at))

    def _outgrows(self, job: int) -> bool:
        """Whether a cell is wider than its column, or than any was where there is no such column."""
        return any(_length(text) > self._seen[key] for key, text in self._cells[job].items())

    def _texts(self, row: int) -> list[str]:
        cells = self._cells[self.order[row]]
        return [self._text(cells, column) for column in self._columns]

    def _text(self, cells: dict[str, str], column: Column) -> str:
        text = cells[column.key]
        if text == NOTHING and column.header == ETA_OR_END:
            text = cells["finished"]
        return shorten(text, column.width) if column.key == "name" else text
