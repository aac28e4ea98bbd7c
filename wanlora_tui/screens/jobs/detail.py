"""The job under the cursor in full, beside the list: k9s and lazygit show it so. In a narrow terminal a few lines below
the list say the most of it.

The whole run, live, is wanlora_tui.screens.dashboard's.
"""

import math
import time

from rich.text import Text
from textual.containers import VerticalScroll
from textual.content import Content

from daemon.settings import CostSettings
from daemon.wire.protocol import ENDED_STATES, JobRecord
from presets.runs.run_view import RunView, StepPoint
from presets.text import escaped, loss_text
from wanlora_tui.actions import bindings
from wanlora_tui.feeds.offers import as_told
from wanlora_tui.feeds.run_times import RunTimes, run_times
from wanlora_tui.output.far_words import advised, shown_path
from wanlora_tui.output.formatting import (
    clock,
    count,
    device_text,
    duration,
    expert_text,
    seconds_each,
    so_far,
    waits_for,
)
from wanlora_tui.output.hanging import hanging
from wanlora_tui.output.queue_words import clock_time, expected, speaks, standing
from wanlora_tui.terminal.rows import Rows

BARS = "▁▂▃▄▅▆▇█"
LOG_LINES = 8
FILES = 4
LABEL = 11  # columns of a row's label
MIN_WIDTH = 24  # while it is not laid out


class JobDetail(VerticalScroll):
    """A record, and the fold of its run once that is known. `cost`: what the machine costs."""

    BINDINGS = bindings("text.down", "text.up", "text.top", "text.bottom")

    def __init__(self, *, cost: CostSettings, id: str) -> None:
        super().__init__(Rows(id="job-detail-text"), id=id)
        self._cost = cost
        self._last: tuple[JobRecord | None, RunView | None, dict[int, str], str] | None = None
        self._shown = Text()

    def on_resize(self) -> None:
        if self._last is not None:
            self.show(*self._last)

    def show(self, record: JobRecord | None, view: RunView | None, names: dict[int, str], problem: str) -> None:
        """`names`: of other jobs. `problem`: why there is no view."""
        self._last = record, view, names, problem
        rows = _Rows(self.content_size.width - self.styles.scrollbar_size_vertical)
        if record is not None:
            _head(rows, record, view, names, self._cost)
            if view is not None and view.attempt:
                _run(rows, view)
            elif record.attempt:
                rows.gap()
                rows.add("", problem or "… reading what it has told", "dim", label_width=0)
        if rows.text != self._shown:
            self._shown = rows.text
            console = self.app.console
            lines = rows.text.split("\n", allow_blank=True)
            self.query_one(Rows).put([Content.from_rich_text(line, console=console) for line in lines])


class _Rows:
    """Lines of a label and its words, which are broken within their own column. A row without words is left out."""

    def __init__(self, width: int) -> None:
        self.text, self.width = Text(), max(MIN_WIDTH, width)
        self._gap = False

    def gap(self) -> None:
        """An empty line before the next row, if there is one."""
        self._gap = True

    def add(self, label: str, words: str, style: str = "", *, label_width: int = LABEL) -> None:
        if words:
            begin = Text.assemble((f"{label:<{label_width}}", "dim"))
            self.text.append("\n" if self._gap else "")
            self._gap = False
            self.text.append_text(hanging(begin, Text(words, style), self.width)).append("\n")


def facts_below(record: JobRecord, view: RunView | None, names: dict[int, str], cost: CostSettings) -> list[str]:
    """The lines below the list in a narrow terminal."""
    now = time.time()
    paused = view.phase.text if view is not None and speaks(record, view) and view.phase.name == "paused" else ""
    times = _told_times(record, view, now)
    ends = f"ends {times.ends}" if times and times.ends else times.left if times else expected(record, now)
    costs = run_times(record, view, now=now, cost=cost).cost if view is not None else ""
    facts = [ends, *_place(record, names), times_text(record, now), f"cost {costs}" if costs else ""]
    return [shown_path(record.run_dir), ", ".join(f for f in facts if f), paused, record.held, record.outcome]


def times_text(record: JobRecord, now: float) -> str:
    """`submitted 14:02, started 14:30, finished Thu 03:11`, as far as it has come."""
    ended = record.state in ENDED_STATES
    stamps = (
        ("submitted", record.submitted_at),
        ("started", record.started_at),
        ("finished", record.finished_at if ended else 0.0),
    )
    return ", ".join(f"{word} {clock_time(at, now)}" for word, at in stamps if at)


def loss_line(points: list[StepPoint], width: int) -> str:
    """The course of a loss in one line of bars: means of as many parts as there are columns."""
    if not points:
        return ""
    size = math.ceil(len(points) / max(1, width))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    means = [m for p in parts if math.isfinite(m := math.fsum(x.loss for x in p) / len(p))]
    if not means:
        return ""
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((m - low) * scale)] for m in means)


def _place(record: JobRecord, names: dict[int, str]) -> list[str]:
    others = [f"{names[job]} (#{job})" for job in record.after if job in names]
    return [
        f"priority {record.priority}" if record.priority else "",
        f"comes after {' and '.join(others)}" if others and record.state == "queued" else "",
        waits_for(record) if record.restart_at else "",
    ]


def _head(rows: _Rows, record: JobRecord, view: RunView | None, names: dict[int, str], cost: CostSettings) -> None:
    now = time.time()
    name = Text.assemble((escaped(record.name), "bold"), (f"  #{record.id}", "dim"))
    rows.text.append_text(hanging(Text(), name, rows.width)).append("\n")
    attempt = f", attempt {record.attempt}" if record.attempt > 1 else ""
    rows.add("State", f"{standing(record)}{attempt}, {device_text(record, view)}")
    rows.add("Why", escaped(advised(record.held or record.outcome)))
    live = view is not None and speaks(record, view)
    step = view.step if view is not None and live else record.step
    steps = record.steps or (view.steps if view is not None else 0)
    rows.add("Progress", _progress(step, steps))
    if view is not None and live and view.phase.name not in ("training", ""):
        done = f" {so_far(view.phase.done, view.phase.total)}" if view.phase.total else ""
        rows.add("Now", escaped(f"{view.phase.name}{done} {view.phase.text}".rstrip()))
    if view is not None and (times := _told_times(record, view, now)):
        ends = f", about {times.ends}" if times.ends else ""
        rows.add("ETA", f"{times.left}{ends}, at {seconds_each(view.seconds_per_step)} s/step")
    else:
        rows.add("Expected", expected(record, now))
    rows.add("Queue", escaped(", ".join(p for p in _place(record, names) if p)))
    rows.add("Submitted", clock_time(record.submitted_at, now) if record.submitted_at else "")
    finished = as_told(record, view).finished_at if view is not None else record.finished_at
    # what runs has no clock of its own here: it would draw the whole screen every second
    told = run_times(record, view, now=now, cost=cost) if view is not None and view.attempt else None
    worked = told.worked if told else ""
    if not worked and record.attempt <= 1 and record.started_at:
        worked = duration(finished - record.started_at)
    took = f", took {worked}" if worked else ""  # of all attempts
    rows.add("Started", clock_time(record.started_at, now) if record.started_at else "")
    ended = record.state in ENDED_STATES and finished
    rows.add("Finished", f"{clock_time(finished, now)}{took}" if ended else "")
    rows.add("Cost", told.cost if told else "")
    rows.add("Run folder", escaped(shown_path(record.run_dir)))
    rows.add("Job file", escaped(shown_path(record.job_path)))


def _told_times(record: JobRecord, view: RunView | None, now: float) -> RunTimes | None:
    """Of a run that trains, by its own events, as everywhere."""
    if view is None or record.state != "running" or not speaks(record, view) or not view.seconds_per_step:
        return None
    return run_times(record, view, now=now)


def _run(rows: _Rows, view: RunView) -> None:
    rows.add("Device", escaped(view.device))
    rows.add("Plan", escaped(view.plan))
    rows.gap()
    for expert, points in view.losses.items():
        if line := loss_line(points, rows.width - LABEL - len(" 0.0000")):
            rows.add(escaped(expert_text(expert)), f"{line} {loss_text(points[-1].loss)}")
    rows.gap()
    for file in view.files[:FILES]:
        rows.add("✓ LoRA", escaped(file))
    if view.checkpoints:
        number = count(len(view.checkpoints), "checkpoint")
        rows.add("Saved", escaped(f"{number}, newest {view.checkpoints[-1].path}"))
    if view.samples:
        rows.add("Previews", escaped(f"{len(view.samples)}, newest {view.samples[-1].path}"))
    if problems := len(view.findings):
        rows.add("Findings", f"{problems}: Enter, then f, shows them")
    rows.gap()
    for said in view.log[-LOG_LINES:]:
        rows.add(f"{clock(said.time)} ", escaped(advised(said.text)), label_width=0)


def _progress(step: int, steps: int) -> str:
    if not steps:
        return str(step) if step else ""
    part = min(1.0, step / steps)
    full = round(12 * part)
    return f"{'█' * full}{'░' * (12 - full)} {step}/{steps}, {100 * part:.0f}%"
