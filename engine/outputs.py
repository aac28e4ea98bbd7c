"""What a run leaves behind: checkpoints with their LoRA files, and the final pair."""

from pathlib import Path
from typing import Any

import torch

from engine import checkpoint, faults, lora
from engine.base import Expert
from engine.setup import Run
from presets.jobfile import job_to_dict


def weights(run: Run, expert: Expert) -> dict[str, torch.Tensor]:
    """What the LoRA files of an expert hold: the running average when there is one and save.ema asks for it, else the LoRA itself."""
    learner = run.learners[expert]
    return learner.ema.average if learner.ema and run.job.save.ema else values(run, expert)


def values(run: Run, expert: Expert) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in run.learners[expert].parameters.items()}


def save_all(run: Run, step: int, *, rehearsal: bool = False) -> str:
    """One checkpoint and the LoRA files of its step; then prune. Returns the checkpoint's path in the run folder.

    A rehearsal writes a checkpoint as large as the later ones and takes it away again: it proves room and permission.
    """
    run.log.phase("saving", 0, 1, "rehearsal" if rehearsal else "checkpoint")
    moments: dict[str, dict[str, Any]] = {
        e: {name: {k: torch.zeros_like(v) for k, v in values(run, e).items()} for name in ("exp_avg", "exp_avg_sq")} for e in run.learners
    }  # before step 1 Adam has none
    state = checkpoint.State(
        step=step,
        lora={e: values(run, e) for e in run.learners},
        optimizer=moments if rehearsal else {e: learner.optimizer.state_dict() for e, learner in run.learners.items()},
        ema={e: learner.ema.average for e, learner in run.learners.items() if learner.ema},
        meta={"job": job_to_dict(run.job), "base": run.base.identity, "versions": run.versions, "run": run.log.run, "attempt": run.log.attempt},
    )
    folder, digest = checkpoint.save(run.folder, state, rehearsal=rehearsal)
    if rehearsal:
        return ""
    for expert in run.learners:
        _write_lora(run, expert, lora_file(run, expert, step), step)
    faults.at("prune", step)
    for old in checkpoint.prune(run.folder, run.job.save.keep):
        for expert in run.learners:
            lora_file(run, expert, old).unlink(missing_ok=True)
    path = str(folder.relative_to(run.folder))
    faults.at("checkpoint.before-event", step)
    run.log.emit("checkpoint", step=step, path=path, sha256=digest)
    return path


def complete_loras(run: Run) -> None:
    """Write the LoRA files of the checkpoint a run resumed from, if a kill came between the two."""
    for expert in run.learners:
        if not (file := lora_file(run, expert, run.start)).exists():
            _write_lora(run, expert, file, run.start)


def save_final(run: Run, step: int) -> list[str]:
    """`NAME_high_noise.safetensors` and `NAME_low_noise.safetensors`; returns their names."""
    names = []
    faults.at("final.begin", step)
    for expert in run.learners:
        file = lora_file(run, expert, None)
        _write_lora(run, expert, file, step)
        names.append(file.name)
    return names


def lora_file(run: Run, expert: Expert, step: int | None) -> Path:
    number = "" if step is None else f"_{step:09d}"
    return run.folder / f"{run.job.job.name}{number}_{expert}.safetensors"


def _write_lora(run: Run, expert: Expert, file: Path, step: int) -> None:
    aside = file.with_name(f".{file.name}.tmp")
    try:
        lora.save_lora(aside, weights(run, expert), job=run.job, base=run.base, expert=expert, step=step)
        aside.chmod(0o644)  # safetensors makes files that only their owner can read
        faults.at("lora-file.before-rename", step)
        aside.rename(file)
    except Exception as e:
        aside.unlink(missing_ok=True)
        raise checkpoint.refusal_of(e, file.parent) from e
