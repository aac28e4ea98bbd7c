"""The LoRA files of a run, `NAME_000000500_high_noise.safetensors`: one per trained expert and checkpoint, and the
final pair.

What they are written from after damage, the checkpoints, is engine.training.saving's; their format engine.adapters's.
"""

import json
from pathlib import Path
from typing import Any

import torch

from engine.adapters import lora
from engine.runfolder import checkpoint
from engine.runfolder.disk_full import retry_when_disk_has_room
from engine.system import fault_injection
from engine.system.durable_files import atomic_write
from engine.training.context import Run
from presets.findings import Finding
from presets.job.expert_schedule import Expert
from presets.job.schema import Job
from presets.job.toml_file import absolute_paths, job_from_dict, job_to_dict
from presets.runs.ranking import rank


def lora_file(run: Run, expert: Expert, step: int | None) -> Path:
    """Where the LoRA of a step lies; without one, the final LoRA."""
    number = "" if step is None else f"_{step:09d}"
    return run.folder / f"{run.job.job.name}{number}_{expert}.safetensors"


def numbered_files(run: Run, expert: Expert) -> list[Path]:
    """The LoRA files of steps that lie there, the earliest first."""
    return sorted(run.folder.glob(f"{run.job.job.name}_{'[0-9]' * 9}_{expert}.safetensors"))


def step_of(run: Run, file: Path) -> int:
    """The step that a numbered file is of."""
    return int(file.stem.removeprefix(f"{run.job.job.name}_")[:9])


def write_lora(run: Run, expert: Expert, file: Path, step: int) -> None:
    """The LoRA as it is after `step`: the running average when there is one and save.ema asks for it, else the LoRA
    itself. Waits while the disk is full; raises StopRequested."""
    _write(run, expert, file, step, run.job, saved_tensors(run, expert))


def saved_tensors(run: Run, expert: Expert) -> dict[str, torch.Tensor]:
    learner = run.learners[expert]
    return learner.ema.average if learner.ema and run.job.save.ema else learner.values


def best_of(run: Run) -> dict[str, Any] | None:
    """The checkpoint with the best held-out loss so far, of those whose LoRA files are there (what a rollback goes back
    behind has pruned others): its step, LoRA files and previews, and why; None without one."""
    there = {step_of(run, file) for expert in run.learners for file in numbered_files(run, expert)}
    found = rank(list(run.log.history.measured.values()), saved=there & run.log.history.checkpoints.keys())
    if found is None:
        return None
    files = [lora_file(run, expert, found.best).name for expert in run.learners]
    previews = sorted(path for path, data in run.log.history.samples.items() if data["step"] == found.best)
    return {"step": found.best, "files": files, "previews": previews, "reason": found.reason}


def _write(
    run: Run,
    expert: Expert,
    file: Path,
    step: int,
    job: Job,
    tensors: dict[str, torch.Tensor],
    best: dict[str, Any] | None = None,
) -> None:
    said = {"wanlora.best": json.dumps(best)} if best else {}

    def attempt() -> None:
        try:
            with atomic_write(file) as aside:
                lora.save_lora(
                    aside,
                    tensors,
                    job=job,
                    base=run.base,
                    expert=expert,
                    step=step,
                    clips=run.trained_on,
                    origin=run.origin.metadata(expert) | said,
                )
                fault_injection.at("lora-file.before-rename", step)
        except Exception as e:
            checkpoint.raise_refusal(e, file.parent)

    size = sum(value.nbytes for value in tensors.values())
    retry_when_disk_has_room(run.log, run.control, run.folder, file.name, size, attempt)


def save_final(run: Run, step: int) -> list[str]:
    """`NAME_high_noise.safetensors` and `NAME_low_noise.safetensors`; returns their names. They say which checkpoint is
    best, where the held-out loss was measured."""
    run.bring_together()
    fault_injection.at("final.begin", step)
    files = [lora_file(run, expert, None) for expert in run.learners]
    for expert, file in zip(run.learners, files, strict=True):
        _write(run, expert, file, step, run.job, saved_tensors(run, expert), best_of(run))
    return [file.name for file in files]


def rewrite_torn_loras(run: Run) -> None:
    """Write the LoRA files of earlier steps that are damaged or missing anew from their checkpoints. A damaged one that
    has none is a finding."""
    for folder in checkpoint.listed(run.folder):
        step = checkpoint.step_of(folder)
        files = {expert: lora_file(run, expert, step) for expert in run.learners}
        missing = [expert for expert, file in files.items() if not lora.is_whole(file)]
        if step == run.begin.step or not missing or checkpoint.verify(folder):
            continue
        state = checkpoint.load(folder)
        job = _job_then(run, state.meta["job"])
        for expert in missing:
            tensors = (state.ema if job.save.ema and state.ema else state.lora)[expert]
            _write(run, expert, files[expert], step, job, tensors)
        names = ", ".join(files[expert].name for expert in missing)
        text = f"{names}: damaged or missing, written anew from the checkpoint of step {step}"
        run.log.emit("log", level="info", text=text)
    for expert in run.learners:
        for file in numbered_files(run, expert):
            if not lora.is_whole(file):
                _report_damaged(run, file, "there is no whole checkpoint to write it anew from")
        final = lora_file(run, expert, None)  # of a run that was done, and is resumed for more steps
        if final.exists() and not lora.is_whole(final):
            _report_damaged(run, final, "is written anew when the run is done")


def _report_damaged(run: Run, file: Path, outlook: str) -> None:
    text = f"{file.name} is damaged, and {outlook}"
    if text not in run.log.history.found:
        fix = "Use the LoRA file of another step; the training continues"
        run.log.finding(Finding(code="lora-damaged", severity="warning", field="save", message=text, fix=fix))


def _job_then(run: Run, tables: dict[str, Any]) -> Job:
    """The job of a checkpoint, with its paths as the present job file has them where they mean the same."""

    def written(then: Any, absolute: Any, mine: Any) -> Any:
        if isinstance(then, dict) and isinstance(absolute, dict):
            return {key: written(value, absolute.get(key), mine.get(key)) for key, value in then.items()}
        if isinstance(then, list) and isinstance(absolute, list) and len(then) == len(absolute):
            return [written(*values) for values in zip(then, absolute, mine, strict=True)]
        return mine if then == absolute else then

    return job_from_dict(written(tables, job_to_dict(absolute_paths(run.job, run.base_dir)), job_to_dict(run.job)))
