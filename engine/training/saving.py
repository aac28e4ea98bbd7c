"""A run's checkpoints: what each holds, when older ones are removed, and the proof beforehand that there is room.

Held are the LoRA in fp32, the optimizer and the running average of each trained expert. Everything else is a function
of the job and the number of steps done, so it is recorded in `position` only to be compared on resume: the place in the
order of clips, the expert whose turn it is, the learning rates. Random numbers are keyed by (seed, purpose, visit of a
clip) and have no state. A checkpoint is written between two optimizer steps: there is never a half-accumulated gradient
in it.

How it comes back is engine.training.restore's; its files on disk are engine.runfolder.checkpoint's.
"""

from typing import Any

import msgspec
import torch

from engine.adapters import lora
from engine.memory.planning import Running
from engine.runfolder import checkpoint
from engine.runfolder.disk_full import retry_when_disk_has_room
from engine.system import fault_injection
from engine.system.device import device_name
from engine.training.context import Run
from engine.training.optimizer import build_optimizer
from engine.training.placement import versions
from engine.training.saved_loras import best_of, lora_file, numbered_files, step_of, write_lora
from presets.job.expert_schedule import expert_at, steps_of
from presets.job.schema import TrainingPanel
from presets.job.toml_file import absolute_paths, job_to_dict


def save_all(run: Run, step: int) -> str:
    """One checkpoint and the LoRA files of its step; then prune. Returns the checkpoint's path in the run folder. Saves
    a step only once.

    Waits while the disk is full; raises StopRequested when a stop comes meanwhile.
    """
    if path := run.log.history.checkpoints.get(step):
        run.log.emit("log", level="info", text=f"step {step} is saved already: {path}")
        return path
    run.bring_together()
    run.log.phase("saving", 0, 1, "checkpoint")
    run.log.sync()  # a checkpoint whose events are missing would make a gap in the curves
    state = _state(run, step, {e: learner.optimizer.state_dict() for e, learner in run.learners.items()})
    folder, digest = retry_when_disk_has_room(
        run.log,
        run.control,
        run.folder,
        f"the checkpoint of step {step}",
        state.nbytes,
        lambda: checkpoint.save(run.folder, state),
    )
    for expert in run.learners:
        write_lora(run, expert, lora_file(run, expert, step), step)
    fault_injection.at("prune", step)
    kept = _prune(run)
    path = str(folder.relative_to(run.folder))
    fault_injection.at("checkpoint.before-event", step)
    run.log.emit("checkpoint", step=step, path=path, sha256=digest, **kept)
    return path


def finish_interrupted_save(run: Run) -> None:
    """Do what a kill or a power cut has cut off behind the checkpoint that the run resumed from: LoRA files, its event,
    the removal of older ones."""
    step, folder = run.begin.step, run.begin.checkpoint
    for expert in run.learners:
        if not lora.is_whole(file := lora_file(run, expert, step)):
            write_lora(run, expert, file, step)
    kept = _prune(run)
    if folder is not None and step not in run.log.history.checkpoints:
        path = str(folder.relative_to(run.folder))
        run.log.emit("checkpoint", step=step, path=path, sha256=checkpoint.digest(folder), **kept)


def check_disk_room(run: Run) -> None:
    """Write a checkpoint as large as the later ones and take it away again: it proves room and permission. Raises
    UserError."""
    run.log.phase("saving", 0, 1, "rehearsal")
    state = _state(run, 0, {e: state_to_come(run.job.training, learner.values) for e, learner in run.learners.items()})
    checkpoint.save(run.folder, state, rehearsal=True)


def state_to_come(training: TrainingPanel, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A state_dict as large as that of the LoRA's optimizer after its first step, before which it has none: a real step
    with tensors of their own, one of each shape, stands for all of that shape. It holds noise: a disk that compresses
    does not make it smaller than the real ones.
    """
    # A and B of one shape differ: B begins with zeros
    kinds = {name: (name.rpartition(".lora_")[2], tensor.shape) for name, tensor in tensors.items()}
    probes: dict[Any, torch.nn.Parameter] = {}
    noise = torch.Generator().manual_seed(0)  # not the global one
    for name, kind in kinds.items():
        if kind not in probes:
            probe = probes[kind] = torch.nn.Parameter(tensors[name].clone())
            probe.grad = torch.randn(probe.shape, generator=noise).to(probe)
    optimizer = build_optimizer(training, list(probes.values()))
    optimizer.step()
    probed = optimizer.state_dict()
    number = {kind: n for n, kind in enumerate(probes)}
    (group,) = probed["param_groups"]
    return {
        "state": {n: probed["state"][number[kind]] for n, kind in enumerate(kinds.values())},
        "param_groups": [{**group, "params": list(range(len(kinds)))}],
    }


def _prune(run: Run) -> dict[str, int]:
    """Remove old checkpoints, and every LoRA file of a step before those that stay, but for the best by its held-out
    loss: also of checkpoints that went another way, damaged. What its event says of what is left."""
    best = best_of(run)
    checkpoint.prune(run.folder, run.job.save.keep)
    oldest = checkpoint.step_of(checkpoint.listed(run.folder)[0])
    for expert in run.learners:
        for file in numbered_files(run, expert):
            if step_of(run, file) < oldest and (best is None or step_of(run, file) != best["step"]):
                file.unlink()
    return {"oldest": oldest, **({"best": best["step"]} if best and best["step"] < oldest else {})}


def _state(run: Run, step: int, optimizer: dict[str, dict[str, Any]]) -> checkpoint.State:
    return checkpoint.State(
        step=step,
        lora={e: learner.values for e, learner in run.learners.items()},
        optimizer=optimizer,
        ema={e: learner.ema.average for e, learner in run.learners.items() if learner.ema},
        meta=_meta(run, step),
    )


def _meta(run: Run, step: int) -> dict[str, Any]:
    """What a checkpoint says of itself besides tensors; plain JSON."""
    return {
        "job": job_to_dict(absolute_paths(run.job, run.base_dir)),
        "base": run.base.identity,
        "beside": dict(run.base.beside),
        "running": msgspec.to_builtins(running_of(run)),
        "device": device_name(run.placement.device),
        "versions": versions(),
        "run": run.log.run,
        "attempt": run.log.attempt,
        "position": position(run, step),
        "data": run.data,
        "starts": run.origin.starts,
        "merges": run.origin.merges,
    }


def running_of(run: Run) -> Running:
    """How the run is held and computed."""
    return Running(run.planning.plan, run.experts.attention, run.encoder.ours)


def position(run: Run, step: int) -> dict[str, Any]:
    """Where a run stands after `step` optimizer steps: a pure function of the job and the step."""
    batch, sampler = step * run.job.training.gradient_accumulation, run.loader.sampler
    return {
        "step": step,
        "micro_step": 0,
        "expert": expert_at(run.job, step),
        "steps_of": steps_of(run.job, step),
        "batch": batch,
        "epoch": batch // sampler.batches_per_epoch,
        "next_clips": [draw.item.id for draw in sampler.batch(batch)],
        "random": f"keyed by seed {run.job.job.seed}",
    }
