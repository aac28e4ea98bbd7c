"""What people see of a run: a pure fold of its events, the same on the daemon, the dashboard and in a test. What the
trainer needs of them is in presets.runs.history.

A view stays small however long its run is: every list in it has a bound. What is left out follows from the view and
the next event alone, so the fold of a part, with the rest applied, is the fold of all.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Struct, field

from presets.job.diff import LIVE_FIELDS, value_at
from presets.runs.alike_steps import AnySteps, Part, ShortPart, ShortStep, parts_of, seconds_by_part, totals
from presets.runs.event_data import (
    ChangedData,
    CheckpointData,
    Data,
    DoneData,
    FailedData,
    FindingData,
    LogData,
    PhaseData,
    QuickLine,
    ReplannedData,
    SampleData,
    StartedData,
    StepData,
    StepLine,
    StoppedData,
    ValidationData,
    data_of,
    done_text,
    measured_text,
)
from presets.runs.events import Event
from presets.runs.loss_points import StepPoint, Thinned, plot
from presets.runs.ranking import Kept, Measure, Ranking, bounded, rank
from presets.runs.ranks import RankSeen, keep_ranks
from presets.runs.spent import Spent, pace
from presets.runs.time_left import ToCome, to_come
from presets.text import sentences, setting_text

FOLD_VERSION = 6  # to be raised with every change of what events add up to: stored folds of another one are not used

ABANDONED = "abandoned"  # the folder in a run folder that holds what a rollback left behind
MOST_ABANDONED = 20
RECENT = 30  # steps that the shown pace is the mean of
LOG_TAIL = 500  # lines kept for the dashboard; the file holds all
MOST_SAMPLES = 2000
MOST_CHECKPOINTS = 1000
MOST_FINDINGS = 200
MOST_RESUMED = 500
MOST_CHANGES = 500
MOST_LEFT = 256  # of each list of a branch that was left
MOST_TEXT = 4000  # characters of any one text


class Phase(Struct):
    name: str = "waiting"
    done: int = 0
    total: int = 0
    text: str = ""


class Change(Struct, array_like=True):
    """A value that was changed while the run trained, from the step after `step` on."""

    step: int
    field: str
    old: str
    new: str


class PreviewSet(Struct):
    step: int
    path: str
    poster: str
    prompt: str
    seed: int


class Checkpoint(Struct):
    step: int
    path: str


class Abandoned(Struct):
    """A branch of the run that was left: an attempt resumed from `after`, and what came behind it no longer counts."""

    attempt: int  # the last one that worked at it
    after: int
    last: int  # its last step
    # where its checkpoints, LoRA files and previews were moved to, relative to the run folder; "" after a plain resume
    folder: str
    losses: dict[str, list[StepPoint]] = field(default_factory=dict)
    samples: list[PreviewSet] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)


class LogLine(Struct):
    time: float
    kind: str  # the event's kind, so that a reader can pick
    text: str


class RunView(Struct, kw_only=True):
    """Everything a dashboard shows. `last_seq`: the last event that it holds."""

    run: str = ""
    name: str = ""
    attempt: int = 0
    last_seq: int = 0
    state: str = "starting"  # starting, running, stopped, failed, done
    started_at: float = 0.0
    updated_at: float = 0.0
    last_step_at: float = 0.0
    plan: str = ""
    device: str = ""
    steps: int = 0  # in all; never fewer than are done: with steps set below that, the run ends where it is
    step: int = 0  # done
    expert: str = ""
    loss: float = 0.0
    lr: float = 0.0
    grad_norm: float = 0.0
    timestep: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)  # of the last step, by part
    recent: list[float] = field(default_factory=list)  # seconds of the last steps
    seconds_per_step: float = 0.0  # mean of these, without those that compiled
    vram_gib: float = 0.0
    ram_gib: float = 0.0
    ranks: dict[int, RankSeen] = field(default_factory=dict)  # of several processes that train it
    vram_total_gib: float = 0.0  # of the device; 0 when it has none or the trainer did not say
    ram_total_gib: float = 0.0
    phase: Phase = field(default_factory=Phase)
    losses: dict[str, list[StepPoint]] = field(default_factory=dict)  # expert -> points, one per step up to MOST_POINTS
    thinned: dict[str, Thinned] = field(default_factory=dict)  # the experts that have had more steps
    resumed: list[int] = field(default_factory=list)  # the steps that an attempt resumed from: resumes and rollbacks
    changes: list[Change] = field(default_factory=list)  # what was changed while it trained, and after which step
    settings: dict[str, Any] = field(default_factory=dict)  # what can be changed while it trains -> the value now
    abandoned: list[Abandoned] = field(default_factory=list)  # the newest branches that were left, oldest first
    leaving: str = ""  # the folder that a rollback moves things to, until its attempt starts
    samples: list[PreviewSet] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    kept: Kept = Kept()  # of which checkpoints LoRA files are left
    measured: list[Measure] = field(default_factory=list)  # held-out losses, by step
    findings: list[dict[str, Any]] = field(default_factory=list)
    log: list[LogLine] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # the LoRA files, once done
    outcome: str = ""  # why it stopped or failed, and what to do next; of one that is done, its best checkpoint
    to_come: ToCome | None = None  # how the job's steps and previews follow each other; None: it did not say
    spent: Spent = field(default_factory=Spent)  # where its time went

    @property
    def ranking(self) -> Ranking | None:
        """Its checkpoints that can be had, by their held-out loss; None when none was measured."""
        return rank(self.measured, saved=self.kept.of(c.step for c in self.checkpoints))


class _Timed(NamedTuple):
    time: float
    data: StepData


def apply_event(view: RunView, event: Event) -> None:
    """Apply one event. Events at or before `last_seq` were applied already and change nothing. Raises ValueError
    or KeyError, and leaves the view as it was, when its data is not what its kind holds."""
    if event.seq > view.last_seq:
        _apply(view, event, data_of(event))
        if event.kind == "step":
            view.seconds_per_step = pace(view.recent)


def apply_all(view: RunView, events: Iterable[Event | QuickLine]) -> None:
    """Apply many, as above, and much quicker than one by one: of steps in a row only the last one is shown."""
    seq, last = view.last_seq, None
    try:
        for event in events:
            if event.seq <= seq:
                continue
            data = event.data if type(event) is StepLine else data_of(event) if isinstance(event, Event) else event.data
            if isinstance(data, StepData):
                _count_step(view, event, data)
                last, step, seq = event, data, event.seq
                continue
            if last is not None:
                _show_step(view, last, step)
                last = None
            _apply(view, event, data)
            seq = event.seq
    finally:  # `events` may be read from a disk that fails: what came before counts
        if last is not None:
            _show_step(view, last, step)
        view.seconds_per_step = pace(view.recent)


def apply_lines(view: RunView, lines: Sequence[QuickLine]) -> None:
    """Apply lines that follow `last_seq` without a gap, quicker still."""
    apply_parts(view, parts_of(lines))
    show_pace(view)


def apply_parts(view: RunView, parts: Iterable[Part | ShortPart]) -> None:
    """The same, to be followed by more, or by `show_pace`."""
    for steps, last, other, ranks in parts:
        if last is not None:
            _apply_steps(view, steps, last)
            view.ranks |= ranks
        if other is not None:
            _apply(view, other, other.data)


def show_pace(view: RunView) -> None:
    """What follows from the last steps."""
    view.seconds_per_step = pace(view.recent)


def _apply_steps(view: RunView, lines: AnySteps, last: StepLine) -> None:
    """Steps in a row."""
    seconds = totals(lines)
    changes = view.spent.steps(lines, seconds, turns=_takes_turns(view))
    steps: defaultdict[str, list[StepLine | ShortStep]] = defaultdict(list)
    for begin, end in zip(changes, [*changes[1:], len(lines)], strict=True):
        steps[lines[begin].data.expert] += lines[begin:end]
    for expert, of_expert in steps.items():
        plot(view.losses, view.thinned, expert, of_expert)
    view.recent += seconds[-RECENT:]
    _show_step(view, last, last.data)
    view.seconds = seconds_by_part(last)


def _takes_turns(view: RunView) -> bool:
    return view.to_come is not None and view.to_come.switch_every > 1


def _apply(view: RunView, event: Event | QuickLine, data: Data) -> None:
    """Everything but the pace, which follows from `recent`."""
    if isinstance(data, StepData):
        _count_step(view, event, data)
        return _show_step(view, event, data)
    _show_head(view, event)
    spent, at = view.spent, (event.time, event.attempt)
    match data:
        case StartedData():
            view.name, view.plan, view.device = data.name, _cut(data.plan), _cut(data.device)
            view.steps = max(data.steps, data.resumed_from)
            view.state, view.outcome, view.files, view.ranks = "running", "", [], {}
            view.vram_total_gib, view.ram_total_gib = data.vram_total_gib, data.ram_total_gib
            view.started_at = view.started_at or event.time
            view.to_come = to_come(data.job)
            view.settings = {field: value_at(data.job, field) for field in LIVE_FIELDS}
            folder = view.leaving or f"{ABANDONED}/attempt_{view.attempt - 1}"
            _rewind(view, data.resumed_from, folder if data.rollback else "")
            view.leaving = ""
            _note(view, event, "started", f"attempt {event.attempt} started on {data.device}: {data.plan}")
        case PhaseData():
            spent.phase(*at, data.name)
            if data.name not in (view.phase.name, "training"):
                _note(view, event, "phase", f"{data.name} {data.text}".rstrip())
            view.phase = Phase(data.name, data.done, data.total, _cut(data.text))
        case SampleData():
            spent.sample(*at)
            sample = PreviewSet(data.step, data.path, data.poster, _cut(data.prompt), data.seed)
            for i in range(len(view.samples) - 1, -1, -1):
                if view.samples[i].path == sample.path:  # made anew
                    view.samples[i] = sample
                    break
            else:
                view.samples.append(sample)
                _bound_samples(view)
            _note(view, event, "sample", f"preview {data.path}")
        case CheckpointData():
            spent.checkpoint(*at)
            view.checkpoints.append(Checkpoint(data.step, data.path))
            view.kept = data.kept
            del view.checkpoints[:-MOST_CHECKPOINTS]
            _note(view, event, "checkpoint", f"checkpoint {data.path}")
        case ValidationData():
            spent.measurement(*at)
            there = view.kept.of(c.step for c in view.checkpoints)
            view.measured = bounded([*view.measured, data.measure], there)
            _note(view, event, "validation", f"held-out loss {measured_text(data)}")
        case FindingData():
            finding = {key: _cut(v) if isinstance(v, str) else v for key, v in msgspec.to_builtins(data).items()}
            if finding not in view.findings:  # each attempt checks the job anew and says the same again
                view.findings.append(finding)
                del view.findings[MOST_FINDINGS // 2 : -MOST_FINDINGS // 2]  # the first and the newest
            _note(view, event, "finding", f"{data.severity}: {data.message}")
        case ChangedData():
            if data.field == "training.steps":
                view.steps = max(data.new, view.step)
            if data.field in LIVE_FIELDS:
                view.settings[data.field] = data.new
            after = view.step if data.step is UNSET else data.step
            view.changes.append(Change(after, data.field, _cut(str(data.old)), _cut(str(data.new))))
            del view.changes[:-MOST_CHANGES]
            old, new = (setting_text(data.field, value) for value in (data.old, data.new))
            _note(view, event, "changed", f"{data.field} changed from {old} to {new}")
        case ReplannedData():
            view.plan = _cut(data.new)
            _note(view, event, "replanned", f"replanned: {data.why}")
        case LogData():
            view.leaving = view.leaving if data.folder is UNSET else data.folder
            _note(view, event, "log", data.text)
        case StoppedData():
            view.state, view.outcome = "stopped", _cut(data.why)
            _note(view, event, "stopped", f"stopped after step {data.step}: {data.why.removeprefix('stopped ')}")
        case FailedData():
            view.state, view.outcome = "failed", _cut(sentences(data.cause, data.next))
            _note(view, event, "failed", f"failed: {view.outcome}")
        case DoneData():
            view.state, view.files, view.outcome = "done", data.files, _cut(done_text(data))
            _note(view, event, "done", f"done: {', '.join(data.files)}")
    if not isinstance(data, PhaseData | SampleData | CheckpointData | ValidationData):
        spent.other(*at)
    if isinstance(data, StoppedData | FailedData | DoneData):
        view.phase = Phase("ending")


def _show_head(view: RunView, event: Event | QuickLine) -> None:
    if event.attempt != view.attempt:  # what the one before did last is over
        view.phase = Phase()
    view.last_seq, view.run, view.attempt, view.updated_at = event.seq, event.run, event.attempt, event.time


def _show_step(view: RunView, event: Event | QuickLine, data: StepData) -> None:
    """What the next step replaces."""
    _show_head(view, event)
    del view.recent[:-RECENT]
    view.phase = Phase("training", data.step, view.steps)
    view.step, view.expert, view.loss = data.step, data.expert, data.loss
    view.lr, view.grad_norm, view.timestep = data.lr, data.grad_norm, data.timestep
    view.vram_gib, view.ram_gib, view.seconds = data.vram_gib, data.ram_gib, data.seconds
    view.last_step_at = event.time


def _count_step(view: RunView, event: Event | QuickLine, data: StepData) -> None:
    """What of a step stays."""
    seconds = data.seconds["total"] / max(1, data.at_once)
    view.spent.step(event.time, event.attempt, data.expert, seconds, _takes_turns(view))
    view.recent.append(seconds)
    keep_ranks(view.ranks, data)
    if len(view.recent) > 1000:  # of steps in a row; a view that is shown has RECENT
        del view.recent[:-RECENT]
    plot(view.losses, view.thinned, data.expert, [_Timed(event.time, data)])


def _bound_samples(view: RunView) -> None:
    """Of a very long run the previews of every second step go, but for the newest; the first step stays."""
    if len(view.samples) > MOST_SAMPLES:
        steps = sorted({s.step for s in view.samples})
        kept = {*steps[: len(steps) // 2 : 2], *steps[len(steps) // 2 :]}
        view.samples = [s for s in view.samples if s.step in kept][-MOST_SAMPLES:]


def _rewind(view: RunView, step: int, folder: str) -> None:
    """An attempt starts again from a checkpoint: what came after it in the plot is trained anew."""
    left = Abandoned(
        attempt=view.attempt - 1,
        after=step,
        last=view.step,
        folder=folder,
        losses={
            expert: behind[:: math.ceil(len(behind) / MOST_LEFT)]
            for expert, points in view.losses.items()
            if (behind := [p for p in points if p.step > step])
        },
        samples=[s for s in view.samples if s.step > step][-MOST_LEFT:],
        checkpoints=[c for c in view.checkpoints if c.step > step][-MOST_LEFT:],
    )
    if left.losses or left.samples or left.checkpoints:
        view.abandoned = [*view.abandoned, left][-MOST_ABANDONED:]
    view.step = step
    view.resumed = [*(s for s in view.resumed if s < step), step][-MOST_RESUMED:] if step else []
    view.losses = {expert: [p for p in points if p.step <= step] for expert, points in view.losses.items()}
    view.thinned = {
        expert: Thinned(thinned.every, 0) for expert, thinned in view.thinned.items() if view.losses.get(expert)
    }
    view.changes = [c for c in view.changes if c.step < step]  # those after this very step are written again
    view.samples = [s for s in view.samples if s.step <= step]
    view.checkpoints = [c for c in view.checkpoints if c.step <= step]
    view.measured = [m for m in view.measured if m.step <= step]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} …"


def _note(view: RunView, event: Event | QuickLine, kind: str, text: str) -> None:
    view.log.append(LogLine(event.time, kind, _cut(text)))
    del view.log[:-LOG_TAIL]
