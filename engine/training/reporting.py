"""What a run logs about itself: the plan in words, the card, memory in use, steps that are not finite, and what the
diagnosis (presets.diagnosis) finds in the events.
"""

from collections.abc import Container
from functools import partial

import psutil
import torch

from engine.system.device import device_name
from engine.training.context import Run
from engine.training.placement import versions
from presets.diagnosis.diagnosis import Diagnosis, changed
from presets.errors import UserError
from presets.findings import Finding
from presets.job.resume_check import JOB_FILE
from presets.job.schema import Job
from presets.job.toml_file import job_to_dict, save_job
from presets.runs.events import EDITED, Event
from presets.runs.history import TELLING

NON_FINITE_LIMIT = 3  # in a row, then the run stops


def announce(run: Run, unlike: list[str]) -> None:
    """The attempt begins: what it runs with, what has changed since the checkpoint, and what is no longer as it was."""
    job, log = run.job, run.log
    ram, vram = round(psutil.virtual_memory().total / 2**30, 3), vram_total_gib(run.placement.device)
    log.emit(
        "started",
        name=job.job.name,
        job=job_to_dict(job),
        plan=plan_text(run),
        versions=versions(),
        base={part: place.source for part, place in run.base.source.places.items()},
        starts=run.origin.starts,
        merges=run.origin.merges,
        device=device_name(run.placement.device),
        steps=job.training.steps,
        resumed_from=run.begin.step,
        rollback=run.begin.rollback,
        vram_total_gib=vram,
        ram_total_gib=ram,
    )
    for s in run.begin.settings:
        log.emit("changed", field=s.field, old=s.old, new=s.new, step=s.step, **{EDITED: True})
    for text in unlike:
        fix = "Nothing needs doing; a run to compare with others is begun anew"
        log.finding(Finding(code="not-comparable", severity="warning", field="job", message=text, fix=fix))
    if run.begin.keep:  # only now: until the changes are logged, the next resume has to see them
        save_job(run.begin.keep, run.folder / JOB_FILE, fresh=True)
    diagnosis = Diagnosis(_as_begun(run), ram_total_gib=ram, vram_total_gib=vram, speeds=run.speeds)
    _look_back(run, diagnosis)
    log.watch = partial(_watch, run, diagnosis)


def _as_begun(run: Run) -> Job:
    """The job before the changes in the history: looking back, the diagnosis meets each of them at its step."""
    job = run.job
    for event in reversed(run.log.history.events):
        if event.kind == "changed":
            job = changed(job, {"field": event.data["field"], "new": event.data["old"]})
    return job


def _look_back(run: Run, diagnosis: Diagnosis) -> None:
    """Feed the diagnosis with what has led here. What it finds was logged then, unless a kill came between."""
    events = run.log.history.events
    logged = {(e.data["code"], e.data.get("step")) for e in events if e.kind == "finding"}
    run.log.history.forget()
    for event in events:
        _watch(run, diagnosis, event, logged)


def _watch(run: Run, diagnosis: Diagnosis, event: Event, logged: Container[tuple[str, int | None]] = ()) -> None:
    if event.kind in TELLING:
        for finding in diagnosis.feed(event):
            if (finding.code, event.data.get("step")) not in logged:
                run.log.finding(finding, step=event.data.get("step", run.begin.step))


def report_non_finite(run: Run, step: int, clips: list[str], timesteps: list[float]) -> None:
    """Step `step` (from 1) was skipped. Raises UserError when it was one too many in a row."""
    history = run.log.history
    text = (
        f"step {step}: the loss or gradient is not finite; the step was skipped, number {len(history.skipped) + 1} in"
        f" this run (clips {', '.join(clips)}, timesteps {', '.join(f'{t:.0f}' for t in timesteps)})"
    )
    fix = "Lower training.lr if it comes again; look at the clips named"
    found = Finding(code="non-finite", severity="warning", field="training.lr", message=text, fix=fix)
    run.log.finding(found, step=step)
    if (in_a_row := history.bad_in_a_row(step)) >= NON_FINITE_LIMIT:
        raise UserError(
            f"{in_a_row} steps in a row were not finite",
            where=f"step {step}",
            fix="The last checkpoint is good: lower training.lr and resume",
        )


def plan_text(run: Run) -> str:
    """One line on how the experts are held and run."""
    if run.placement.device.type != "cuda":
        return "fp32 on the CPU, everything resident"
    return f"{run.experts.plan.text}; attention by {run.experts.attention.text}; {run.planning.why}"


def vram_gib(device: torch.device) -> float:
    """Peak memory held by the allocator since the last call, GiB."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return round(peak / 2**30, 3)


def vram_total_gib(device: torch.device) -> float:
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 3) if device.type == "cuda" else 0.0


def ram_gib() -> float:
    return round(psutil.Process().memory_info().rss / 2**30, 3)
