"""What people see of a run: a pure fold of its events, the same on the daemon, the dashboard and in a test. What the
trainer needs of them is in presets.runs.history.
"""

from statistics import fmean, median
from typing import Any

from msgspec import Struct, field

from presets.job.diff import LIVE_FIELDS
from presets.runs.events import Event
from presets.text import sentences

ABANDONED = "abandoned"  # the folder in a run folder that holds what a rollback left behind
MOST_ABANDONED = 20
RECENT = 30  # steps that the pace is the mean of
UNUSUAL = 4  # times the median: a step that compiled, or waited for something
LOG_TAIL = 500  # lines kept for the dashboard; the file holds all


class Phase(Struct):
    name: str = "waiting"
    done: int = 0
    total: int = 0
    text: str = ""


class StepPoint(Struct, array_like=True):
    """One point of the loss plot."""

    step: int
    loss: float


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
    vram_total_gib: float = 0.0  # of the device; 0 when it has none or the trainer did not say
    ram_total_gib: float = 0.0
    phase: Phase = field(default_factory=Phase)
    losses: dict[str, list[StepPoint]] = field(default_factory=dict)  # expert -> points, one per step
    resumed: list[int] = field(default_factory=list)  # the steps that an attempt resumed from: resumes and rollbacks
    settings: dict[str, Any] = field(default_factory=dict)  # what can be changed while it trains -> the value now
    abandoned: list[Abandoned] = field(default_factory=list)  # the newest branches that were left, oldest first
    leaving: str = ""  # the folder that a rollback moves things to, until its attempt starts
    samples: list[PreviewSet] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    log: list[LogLine] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # the LoRA files, once done
    outcome: str = ""  # why it stopped or failed, and what to do next

    @property
    def eta_seconds(self) -> float:
        """Seconds of training left at the present pace; previews and saves come on top."""
        return max(0, self.steps - self.step) * self.seconds_per_step


def apply_event(view: RunView, event: Event) -> None:
    """Apply one event. Events at or before `last_seq` were applied already and change nothing."""
    if event.seq <= view.last_seq:
        return
    view.last_seq, view.run, view.attempt, view.updated_at = event.seq, event.run, event.attempt, event.time
    data = event.data
    match event.kind:
        case "started":
            view.name, view.plan, view.device, view.steps = (
                data["name"],
                data["plan"],
                data["device"],
                max(data["steps"], data["resumed_from"]),
            )
            view.state, view.outcome, view.files = "running", "", []
            view.vram_total_gib, view.ram_total_gib = data.get("vram_total_gib", 0.0), data.get("ram_total_gib", 0.0)
            view.started_at = view.started_at or event.time
            view.settings = {field: value_at(data["job"], field) for field in LIVE_FIELDS}
            _rewind(
                view,
                data["resumed_from"],
                (view.leaving or f"{ABANDONED}/attempt_{view.attempt - 1}") if data.get("rollback") else "",
            )
            view.leaving = ""
            _note(view, event, f"attempt {event.attempt} started on {data['device']}: {data['plan']}")
        case "phase":
            phase = Phase(data["name"], data["done"], data["total"], data.get("text", ""))
            if phase.name != view.phase.name and phase.name != "training":
                _note(view, event, f"{phase.name} {phase.text}".rstrip())
            view.phase = phase
        case "step":
            view.phase = Phase("training", data["step"], view.steps)
            view.step, view.expert, view.loss = data["step"], data["expert"], data["loss"]
            view.lr, view.grad_norm, view.timestep = data["lr"], data["grad_norm"], data["timestep"]
            view.vram_gib, view.ram_gib, view.seconds = data["vram_gib"], data["ram_gib"], data["seconds"]
            view.recent = [*view.recent[1 - RECENT :], data["seconds"]["total"]]
            usual = median(view.recent)
            view.seconds_per_step = fmean(s for s in view.recent if s <= UNUSUAL * usual)
            view.last_step_at = event.time
            view.losses.setdefault(view.expert, []).append(StepPoint(view.step, view.loss))
        case "sample":
            sample = PreviewSet(data["step"], data["path"], data["poster"], data["prompt"], data["seed"])
            known = [s.path for s in view.samples]
            if sample.path in known:  # made anew
                view.samples[known.index(sample.path)] = sample
            else:
                view.samples.append(sample)
            _note(view, event, f"preview {data['path']}")
        case "checkpoint":
            view.checkpoints.append(Checkpoint(data["step"], data["path"]))
            _note(view, event, f"checkpoint {data['path']}")
        case "finding":
            if data not in view.findings:  # each attempt checks the job anew and says the same again
                view.findings.append(data)
            _note(view, event, f"{data['severity']}: {data['message']}")
        case "changed":
            if data["field"] == "training.steps":
                view.steps = max(data["new"], view.step)
            if data["field"] in LIVE_FIELDS:
                view.settings[data["field"]] = data["new"]
            _note(view, event, f"{data['field']} changed from {data['old']} to {data['new']}")
        case "replanned":
            view.plan = data["new"]
            _note(view, event, f"replanned: {data['why']}")
        case "log":
            view.leaving = data.get("folder", view.leaving)
            _note(view, event, data["text"])
        case "stopped":
            view.state, view.outcome = "stopped", data["why"]
            _note(view, event, f"stopped after step {data['step']}: {data['why'].removeprefix('stopped ')}")
        case "failed":
            view.state, view.outcome = "failed", sentences(data["cause"], data["next"])
            _note(view, event, f"failed: {view.outcome}")
        case "done":
            view.state, view.files = "done", data["files"]
            _note(view, event, f"done: {', '.join(data['files'])}")


def _rewind(view: RunView, step: int, folder: str) -> None:
    """An attempt starts again from a checkpoint: what came after it in the plot is trained anew."""
    left = Abandoned(
        attempt=view.attempt - 1,
        after=step,
        last=view.step,
        folder=folder,
        losses={
            expert: behind for expert, points in view.losses.items() if (behind := [p for p in points if p.step > step])
        },
        samples=[s for s in view.samples if s.step > step],
        checkpoints=[c for c in view.checkpoints if c.step > step],
    )
    if left.losses or left.samples or left.checkpoints:
        view.abandoned = [*view.abandoned, left][-MOST_ABANDONED:]
    view.step = step
    view.resumed = [*(s for s in view.resumed if s < step), step] if step else []
    view.losses = {expert: [p for p in points if p.step <= step] for expert, points in view.losses.items()}
    view.samples = [s for s in view.samples if s.step <= step]
    view.checkpoints = [c for c in view.checkpoints if c.step <= step]


def value_at(tables: dict[str, Any], path: str) -> Any:
    """The value at a field path of a job as plain tables; None when it is left out."""
    at: Any = tables
    for part in path.split("."):
        at = at.get(part) if isinstance(at, dict) else None
    return at


def _note(view: RunView, event: Event, text: str) -> None:
    view.log.append(LogLine(event.time, event.kind, text))
    del view.log[:-LOG_TAIL]
