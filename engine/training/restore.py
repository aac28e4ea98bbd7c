"""A run's state: what a checkpoint holds of it, and how it comes back.

Held are the LoRA in fp32, the optimizer and the running average of each trained expert. Everything else is a function
of the job and the number of steps done, so it is written down in `position` only to be compared on resume: the place in
the order of clips, the expert whose turn it is, the learning rates. Random numbers are keyed by (seed, purpose, visit
of a clip) and have no state. A checkpoint is written between two optimizer steps: there is never a half-accumulated
gradient in it.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from engine.adapters import lora
from engine.memory.planning import Running
from engine.runfolder import checkpoint
from engine.system import fault_injection
from engine.system.device import device_name
from engine.training.setup import Run
from presets.errors import UserError
from presets.job.expert_schedule import expert_at, steps_of
from presets.job.toml_file import absolute_paths, job_to_dict


def meta_of(run: Run, step: int) -> dict[str, Any]:
    """What a checkpoint says of itself besides tensors; plain JSON."""
    return {
        "job": job_to_dict(absolute_paths(run.job, run.base_dir)),
        "base": run.base.identity,
        "beside": dict(run.base.beside),
        "running": msgspec.to_builtins(running_of(run)),
        "device": device_name(run.device),
        "versions": run.versions,
        "run": run.log.run,
        "attempt": run.log.attempt,
        "position": position(run, step),
        "data": run.data,
    }


def running_of(run: Run) -> Running:
    return Running(run.planning.plan, run.experts.attention)


def position(run: Run, step: int) -> dict[str, Any]:
    """Where a run stands after `step` optimizer steps: a pure function of the job and the step."""
    batch = step * run.job.training.gradient_accumulation
    return {
        "step": step,
        "micro_step": 0,
        "expert": expert_at(run.job, step),
        "steps_of": steps_of(run.job, step),
        "batch": batch,
        "epoch": batch // run.order.batches_per_epoch,
        "next_clips": [draw.item.id for draw in run.order.batch(batch)],
        "random": f"keyed by seed {run.job.job.seed}",
    }


def fingerprint(run: Run) -> dict[str, Any]:
    """What is trained on, by content as far as the order and the texts go: the visits of an epoch, captions, sizes of
    the files."""
    told = [{**msgspec.to_builtins(item), "path": Path(item.path).stat().st_size} for item in run.order.items]
    return {"visits": len(told), "sha256": hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()}


def restore(run: Run) -> list[str]:
    """Bring the state of `run.begin` back; returns sentences on what is no longer as it was. Raises UserError when it
    does not fit."""
    # as it is now: a clip that goes away later must not keep a checkpoint from being written
    run.data = fingerprint(run)
    begin = run.begin
    if begin.checkpoint is None:
        return []
    fault_injection.at("resume.loading", begin.step)
    state = checkpoint.load(begin.checkpoint)
    if state.meta["base"] != run.base.identity:
        raise UserError(
            "the base model's weights are not those this run began with",
            where=str(run.base.source.folder),
            fix="Put the same base back, or start a new run under another name",
        )
    same_data = state.meta["data"] == run.data
    if not same_data and begin.comparable and not begin.accepted:
        raise UserError(
            f"the clips or captions have changed since step {begin.step} ({state.meta['data']['visits']} visits an"
            f" epoch then, {len(run.order.items)} now)",
            where="datasets",
            fix="Put them back, or go on all the same with --accept-changes (the run is then no longer comparable)",
        )
    for expert, learner in run.learners.items():
        lora.load_tensors(learner.parameters, state.lora[expert])
        learner.optimizer.load_state_dict(state.optimizer[expert])
        if learner.ema:  # switched on since: the average begins with what was learnt
            learner.ema.load(state.ema.get(expert, state.lora[expert]))
    run.start = begin.step
    fault_injection.at("resume.restored", run.start)
    return _unlike(run, state.meta, same_data)


def _unlike(run: Run, meta: dict[str, Any], same_data: bool) -> list[str]:
    out = []
    begin = run.begin
    if not begin.comparable:
        out.append(
            f"the job has changed in {', '.join(c.field for c in begin.since if c.breaks)}: from step {begin.step + 1}"
            " on this is another run than the one that was begun, and not comparable with it"
        )
    elif not same_data:
        out.append(
            f"the clips or captions have changed: from step {begin.step + 1} on this is another run than the one that"
            " was begun, and not comparable with it"
        )
    elif meta["position"] != position(run, begin.step):
        out.append(
            "this version of wanlora takes the clips or the experts in another order: the run is not comparable with an"
            " uninterrupted one"
        )
    now = running_of(run)
    before = msgspec.convert(meta["running"], Running) if "running" in meta else None
    beside, before_beside = run.base.beside, meta.get("beside", {})
    for part in (p for p in beside if before_beside.get(p, beside[p]) != beside[p]):
        out.append(
            f"resumed with another {part.replace('_', ' ').replace('vae', 'VAE')}, from"
            f" {run.base.source.places[part].source}: from step {begin.step + 1} on this is another run than the one"
            " that was begun, and not comparable with it"
        )
    things = [
        ("card", meta["device"], device_name(run.device)),
        *((f"version of {name}", meta["versions"].get(name, "none"), of) for name, of in run.versions.items()),
    ]
    if before is None or before.plan.rounds_as != now.plan.rounds_as:
        things.append(("plan", before.plan.whole_text if before else "not written down", now.plan.whole_text))
    if before is not None:
        things.append(("attention kernel", before.attention.text, now.attention.text))
    for what, old, new in things:
        if old != new:
            out.append(
                f"resumed with another {what} ({new}, before: {old}): that the result equals the uninterrupted run to"
                " the bit is not promised"
            )
    return out
