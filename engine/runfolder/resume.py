"""Where an attempt of a run begins: at which checkpoint, with which job, and what has changed since. Imports no torch.

RUN/job.toml holds the job as it was given and does not follow what is set while the run trains: that is in the
`changed` events and in the checkpoints. A resume begins with the job file it is given. Of the fields in LIVE_FIELDS,
those that the file leaves as RUN/job.toml has them take the checkpoint's values, and what was set after the checkpoint
is set again at the same steps; those that were edited in the file take the file's values. Going back to an older
checkpoint, only what had been set there while it trained counts on, and no longer once the file was edited after that:
the number of steps in an old checkpoint is that of the file as it was then. Then RUN/job.toml becomes the file given.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.runfolder import checkpoint
from engine.runfolder.event_log import EventLog
from engine.system import fault_injection
from presets.errors import UserError
from presets.findings import Finding
from presets.job.diff import LIVE_FIELDS, FieldChange, changes
from presets.job.resume_check import ResumeCheck, check_resume, held_job
from presets.job.schema import Job
from presets.job.toml_file import absolute_paths, get_value, job_from_dict, with_value
from presets.runs.events import EVENTS_FILE, read_events
from presets.runs.history import History, Setting
from presets.runs.run_view import ABANDONED


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where an attempt begins. `job` has its paths as the job file has them."""

    job: Job  # as it counts from `step` on
    resumed: bool = False
    step: int = 0
    checkpoint: Path | None = None  # None: from nothing
    meta: dict[str, Any] = field(default_factory=dict)  # what the checkpoint says of itself
    since: list[FieldChange] = field(default_factory=list)  # how `job` differs from the checkpoint's
    settings: list[Setting] = field(default_factory=list)  # the same as `changed` events
    ahead: list[Setting] = field(default_factory=list)  # set while an earlier attempt trained what is now trained again
    damaged: list[str] = field(default_factory=list)  # newer checkpoints that were passed over
    keep: Job | None = None  # what RUN/job.toml is to hold from now on; None: what it holds
    rollback: bool = False
    # the folder of a rollback that was cut short: it is taken up again there, so that its branch lies in one place
    abandoned: str = ""
    accepted: bool = False  # that the run is no longer the one that was begun
    check: ResumeCheck | None = None  # how the job file has changed, which has been accepted

    @property
    def comparable(self) -> bool:
        return not any(c.breaks for c in self.since)


def find_resume_point(folder: Path, job: Job, base_dir: Path, *, from_step: int | None, accept: bool) -> ResumePoint:
    """Look, and change nothing but what a killed writer left half done. Raises UserError: no such step, or changes that
    nobody accepted."""
    checkpoint.sweep(folder)
    history = read_history(folder / EVENTS_FILE)
    back = history.rolling_back if from_step is None else from_step  # a rollback that was cut short is taken up again
    damaged: list[str] = []
    if back is None:
        found, damaged = checkpoint.newest(folder)
    else:
        found = checkpoint.of_step(folder, back)
    meta = json.loads((found / "state.json").read_text()) if found else {}
    step = meta.get("step", 0)
    given = absolute_paths(job, base_dir)
    then = job_from_dict(meta["job"], where=f"{found}/state.json") if found else None
    held, unreadable = held_job(folder, base_dir)
    asked = check_resume(held or then, given, trained=found is not None, unreadable=unreadable)
    _require(folder, asked, accept=accept)
    edits = asked.changes

    edited = {c.field for c in edits}
    # cut short while it trained, done, and asked to continue: so with the steps of its file
    if then and history.done and then.training.steps <= step < given.training.steps:
        edited.add("training.steps")
    if then and back is not None:
        edited |= {path for path in LIVE_FIELDS if not history.was_set(path, get_value(then, path), step)}
    if then:
        for path in LIVE_FIELDS:
            if path not in edited:
                job = with_value(job, path, get_value(then, path))
    before, now = then or held or given, absolute_paths(job, base_dir)
    since = changes(before, now)
    if found:
        _require(folder, ResumeCheck(changes=[c for c in since if c.impossible], trained=True), accept=False)
    return ResumePoint(
        job=job,
        resumed=True,
        step=step,
        checkpoint=found,
        meta=meta,
        since=since,
        settings=[
            Setting(step=step, field=c.field, old=_value(before, c.field), new=_value(now, c.field)) for c in since
        ],
        ahead=[] if from_step is not None else [s for s in history.ahead(step) if s.field not in edited],
        damaged=damaged,
        keep=given if edits or unreadable else None,
        rollback=back is not None,
        abandoned=history.abandoned,
        accepted=accept,
        check=asked,
    )


def read_history(path: Path) -> History:
    """The history in an events file, without the lines that are damaged: the event log counts them."""
    history = History()
    if path.exists():
        for event, _ in read_events(path, report=lambda line: None):
            history.add(event)
    return history


def _require(folder: Path, asked: ResumeCheck, *, accept: bool) -> None:
    """Raise UserError with the difference unless it does no harm or is accepted."""
    asked.require(
        asked.digest if accept else None,
        where=str(folder),
        lines=True,
        accept="resume all the same with --accept-changes (the run is then no longer comparable)",
    )


def _value(job: Job, path: str) -> Any:
    try:
        return get_value(job, path)
    except UserError:  # a dataset or prompt that only the other job has
        return None


def set_aside_later_files(begin: ResumePoint, folder: Path, log: EventLog) -> None:
    """Say what was passed over, and move away what lies beyond the step the attempt begins with. Nothing is deleted."""
    for text in begin.damaged:
        log.finding(
            Finding(
                code="checkpoint-damaged",
                severity="warning",
                field=checkpoint.CHECKPOINTS,
                message=text,
                fix="The run resumes from the one before",
            )
        )
    if begin.rollback:
        place = begin.abandoned or f"{ABANDONED}/attempt_{log.attempt - 1}"
        log.emit(
            "log",
            level="info",
            text=f"going back to step {begin.step}: what came after it moves to {place}",
            rollback=begin.step,
            folder=place,
        )
        abandon(folder, begin.job.job.name, begin.step, folder / place)
        return
    checkpoint.set_aside(folder, after=begin.step)
    if begin.resumed and begin.checkpoint is None:
        log.emit("log", level="warning", text="no checkpoint to resume from: starting at step 1")


def abandon(folder: Path, name: str, step: int, place: Path) -> None:
    """Move checkpoints, LoRA files and previews of steps beyond `step` to `place`, the newest first: cut short, it can
    be begun again."""
    numbered = {
        checkpoint.CHECKPOINTS: r"step_(\d{9})",
        "samples": r"step_(\d{9})",
        "": rf"{re.escape(name)}_(\d{{9}})_(?:high|low)_noise\.safetensors",
    }
    moves: list[tuple[int, Path, str]] = []
    for where, pattern in numbered.items():
        for path in (folder / where).glob("*"):
            if (match := re.fullmatch(pattern, path.name)) and int(match[1]) > step:
                moves.append((int(match[1]), path, where))
    moves += [
        (10**9, path, "")
        for path in folder.glob(f"{name}_*_noise.safetensors")
        if path.name in (f"{name}_high_noise.safetensors", f"{name}_low_noise.safetensors")
    ]
    for n, (_, path, where) in enumerate(sorted(moves, reverse=True)):
        if n == len(moves) // 2:
            fault_injection.at("abandon.mid", step)
        _make_place(place, where, folder)
        path.rename(place / where / path.name)


def _make_place(place: Path, where: str, folder: Path) -> None:
    """What lies on another disk, behind a link, stays there: the place for it is a link, too."""
    if (folder / where).is_symlink() and not (place / where).exists():
        there = (folder / where).resolve() / ABANDONED / place.name
        there.mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        (place / where).symlink_to(there)
    (place / where).mkdir(parents=True, exist_ok=True)
