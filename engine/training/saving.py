"""What a run leaves behind: checkpoints with their LoRA files, and the final pair."""

from pathlib import Path
from typing import Any

import torch

from engine.adapters import lora
from engine.runfolder import checkpoint
from engine.runfolder.control import Control
from engine.runfolder.disk_full import retry_when_disk_has_room
from engine.system import fault_injection
from engine.system.durable_files import atomic_write
from engine.training.optimizer import build_optimizer
from engine.training.restore import meta_of
from engine.training.setup import Run
from presets.findings import Finding
from presets.job.expert_schedule import Expert
from presets.job.schema import Job, TrainingPanel
from presets.job.toml_file import absolute_paths, job_from_dict, job_to_dict


def weights(run: Run, expert: Expert) -> dict[str, torch.Tensor]:
    """What the LoRA files of an expert hold: the running average when there is one and save.ema asks for it, else the
    LoRA itself."""
    learner = run.learners[expert]
    return learner.ema.average if learner.ema and run.job.save.ema else values(run, expert)


def values(run: Run, expert: Expert) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in run.learners[expert].parameters.items()}


def check_disk_room(run: Run) -> None:
    """Write a checkpoint as large as the later ones and take it away again: it proves room and permission. Raises
    UserError."""
    run.log.phase("saving", 0, 1, "rehearsal")
    checkpoint.save(
        run.folder,
        _state(run, 0, {e: state_to_come(run.job.training, values(run, e)) for e in run.learners}),
        rehearsal=True,
    )


def state_to_come(training: TrainingPanel, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A state_dict as large as that of the LoRA's optimizer after its first step, before which it has none: a real step
    with tensors of their own, one of each shape, stands for all of that shape. It holds noise: a disk that compresses
    does not make it smaller than the real ones.
    """
    # A and B of one shape differ: B begins with zeros
    kinds = {name: (name.rpartition(".lora_")[2], tensor.shape) for name, tensor in tensors.items()}
    probes: dict[Any, torch.nn.Parameter] = {}
    noise = torch.Generator().manual_seed(0)  # the global one is nobody's here
    for name, kind in kinds.items():
        if kind not in probes:
            probe = probes[kind] = torch.nn.Parameter(tensors[name].clone())
            probe.grad = torch.randn(probe.shape, generator=noise).to(probe)
    optimizer = build_optimizer(training, list(probes.values()))
    optimizer.step()
    told = optimizer.state_dict()
    number = {kind: n for n, kind in enumerate(probes)}
    (group,) = told["param_groups"]
    return {
        "state": {n: told["state"][number[kind]] for n, kind in enumerate(kinds.values())},
        "param_groups": [{**group, "params": list(range(len(kinds)))}],
    }


def save_all(run: Run, step: int, control: Control) -> str:
    """One checkpoint and the LoRA files of its step; then prune. Returns the checkpoint's path in the run folder. Saves
    a step only once.

    Waits while the disk is full; raises StopWished when a stop comes meanwhile.
    """
    if path := run.log.history.checkpoints.get(step):
        run.log.emit("log", level="info", text=f"step {step} is saved already: {path}")
        return path
    run.log.phase("saving", 0, 1, "checkpoint")
    run.log.sync()  # a checkpoint whose events are missing would make a gap in the curves
    state = _state(run, step, {e: learner.optimizer.state_dict() for e, learner in run.learners.items()})
    folder, digest = retry_when_disk_has_room(
        run.log,
        control,
        run.folder,
        f"the checkpoint of step {step}",
        state.nbytes,
        lambda: checkpoint.save(run.folder, state),
    )
    for expert in run.learners:
        write_lora(run, expert, lora_file(run, expert, step), step, control)
    fault_injection.at("prune", step)
    _prune(run)
    path = str(folder.relative_to(run.folder))
    fault_injection.at("checkpoint.before-event", step)
    run.log.emit("checkpoint", step=step, path=path, sha256=digest)
    return path


def _prune(run: Run) -> None:
    """Remove old checkpoints, and every LoRA file of a step before those that stay: also of checkpoints that went
    another way, damaged."""
    checkpoint.prune(run.folder, run.job.save.keep)
    oldest = checkpoint.step_of(checkpoint.listed(run.folder)[0])
    for expert in run.learners:
        for file in run.folder.glob(f"{run.job.job.name}_{'[0-9]' * 9}_{expert}.safetensors"):
            if int(file.stem.removeprefix(f"{run.job.job.name}_")[:9]) < oldest:
                file.unlink()


def _state(run: Run, step: int, optimizer: dict[str, dict[str, Any]]) -> checkpoint.State:
    return checkpoint.State(
        step=step,
        lora={e: values(run, e) for e in run.learners},
        optimizer=optimizer,
        ema={e: learner.ema.average for e, learner in run.learners.items() if learner.ema},
        meta=meta_of(run, step),
    )


def finish_interrupted_save(run: Run, control: Control) -> None:
    """Do what a kill or a power cut has cut off behind the checkpoint that the run resumed from: LoRA files, its event,
    the removal of older ones."""
    for expert in run.learners:
        if not lora.is_whole(file := lora_file(run, expert, run.start)):
            write_lora(run, expert, file, run.start, control)
    _prune(run)
    folder = run.begin.checkpoint
    if folder is not None and run.start not in run.log.history.checkpoints:
        run.log.emit(
            "checkpoint", step=run.start, path=str(folder.relative_to(run.folder)), sha256=checkpoint.digest(folder)
        )


def rewrite_torn_loras(run: Run, control: Control) -> None:
    """Write the LoRA files of earlier steps that are torn or gone anew from their checkpoints. A torn one that has none
    is a finding."""
    for folder in checkpoint.listed(run.folder):
        step = checkpoint.step_of(folder)
        files = {expert: lora_file(run, expert, step) for expert in run.learners}
        missing = [expert for expert, file in files.items() if not lora.is_whole(file)]
        if step == run.start or not missing or checkpoint.verify(folder):
            continue
        state = checkpoint.load(folder)
        job = _job_then(run, state.meta["job"])
        for expert in missing:
            write_lora(
                run,
                expert,
                files[expert],
                step,
                control,
                job=job,
                values=(state.ema if job.save.ema and state.ema else state.lora)[expert],
            )
        run.log.emit(
            "log",
            level="info",
            text=(
                f"{', '.join(files[expert].name for expert in missing)}: damaged or gone, written anew from the"
                f" checkpoint of step {step}"
            ),
        )
    for expert in run.learners:
        numbered = [
            file
            for file in sorted(run.folder.glob(f"{run.job.job.name}_{'[0-9]' * 9}_{expert}.safetensors"))
            if not lora.is_whole(file)
        ]
        final = lora_file(run, expert, None)  # of a run that was done, and has been asked to go on
        for file in numbered + ([final] if final.exists() and not lora.is_whole(final) else []):
            text = f"{file.name} is damaged, and " + (
                "is written anew when the run is done"
                if file == final
                else "there is no whole checkpoint to write it anew from"
            )
            if text not in run.log.history.found:
                run.log.finding(
                    Finding(
                        code="lora-damaged",
                        severity="warning",
                        field="save",
                        message=text,
                        fix="Use the LoRA file of another step; the training goes on",
                    )
                )


def _job_then(run: Run, tables: dict[str, Any]) -> Job:
    """The job of a checkpoint, with its paths as the present job file has them where they mean the same."""

    def written(then: Any, absolute: Any, mine: Any) -> Any:
        if isinstance(then, dict) and isinstance(absolute, dict):
            return {key: written(value, absolute.get(key), mine.get(key)) for key, value in then.items()}
        if isinstance(then, list) and isinstance(absolute, list) and len(then) == len(absolute):
            return [written(*values) for values in zip(then, absolute, mine, strict=True)]
        return mine if then == absolute else then

    return job_from_dict(written(tables, job_to_dict(absolute_paths(run.job, run.base_dir)), job_to_dict(run.job)))


def save_final(run: Run, step: int, control: Control) -> list[str]:
    """`NAME_high_noise.safetensors` and `NAME_low_noise.safetensors`; returns their names."""
    names = []
    fault_injection.at("final.begin", step)
    for expert in run.learners:
        file = lora_file(run, expert, None)
        write_lora(run, expert, file, step, control)
        names.append(file.name)
    return names


def lora_file(run: Run, expert: Expert, step: int | None) -> Path:
    number = "" if step is None else f"_{step:09d}"
    return run.folder / f"{run.job.job.name}{number}_{expert}.safetensors"


def write_lora(
    run: Run,
    expert: Expert,
    file: Path,
    step: int,
    control: Control,
    *,
    job: Job | None = None,
    values: dict[str, torch.Tensor] | None = None,
) -> None:
    """The LoRA of `step`: the present one, or that of an earlier step with the job of then. Waits while the disk is
    full; raises StopWished."""
    tensors = weights(run, expert) if values is None else values

    def write() -> None:
        try:
            with atomic_write(file) as aside:
                lora.save_lora(aside, tensors, job=job or run.job, base=run.base, expert=expert, step=step)
                aside.chmod(0o644)  # safetensors makes files that only their owner can read
                fault_injection.at("lora-file.before-rename", step)
        except Exception as e:
            checkpoint.raise_refusal(e, file.parent)

    retry_when_disk_has_room(
        run.log, control, run.folder, file.name, sum(value.nbytes for value in tensors.values()), write
    )
