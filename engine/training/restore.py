"""How a run's state comes back from the checkpoint it resumes from, and what is no longer as it was.

What a checkpoint holds is engine.training.saving's; which one an attempt begins at is engine.runfolder.resume's.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from engine.memory.planning import Running
from engine.runfolder import checkpoint
from engine.system import fault_injection
from engine.system.device import device_name
from engine.training.context import Run
from engine.training.placement import versions
from engine.training.saving import position, running_of
from presets.errors import UserError
from presets.job.diff import READ_ONCE
from presets.job.expert_schedule import Expert


def restore(run: Run) -> list[str]:
    """Bring the state of `run.begin` back; returns sentences on what is no longer as it was. Raises UserError when it
    does not fit."""
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
    if any(_contents(state.meta.get("merges", {}), e) != _contents(run.origin.merges, e) for e in run.learners):
        raise UserError(
            "the LoRAs merged into the base are not those this run began with",
            where="model.merge",
            fix="Put the same files back, or start a new run under another name",
        )
    same_data = state.meta["data"] == run.data
    if not same_data and begin.comparable and not begin.accepted:
        raise UserError(
            f"the clips or captions have changed since step {begin.step} ({state.meta['data']['visits']} visits an"
            f" epoch then, {run.data['visits']} now)",
            where="datasets",
            fix="Put them back, or resume all the same with --accept-changes (the run is then no longer comparable)",
        )
    for expert, learner in run.learners.items():
        learner.load(state.lora[expert], state.optimizer[expert], state.ema.get(expert))
    fault_injection.at("resume.restored", begin.step)
    return _unlike(run, state.meta, same_data)


def _contents(merges: Mapping[Expert, list[dict[str, Any]]], expert: Expert) -> list[tuple[str, float]]:
    """What counts of the LoRAs merged into an expert: not where their files lie."""
    return [(file["sha256"], file["strength"]) for file in merges.get(expert, [])]


def _unlike(run: Run, meta: dict[str, Any], same_data: bool) -> list[str]:
    out = []
    begin = run.begin
    another = (
        f"from step {begin.step + 1} on this is another run than the one that was begun, and not comparable with it"
    )
    if edited := [c.field for c in begin.since if c.field in READ_ONCE]:
        run.log.emit(
            "log",
            level="info",
            text=f"{' and '.join(edited)} changed, to no effect: a start is read when a run begins",
        )
    if not begin.comparable:
        out.append(f"the job has changed in {', '.join(c.field for c in begin.since if c.breaks)}: {another}")
    elif not same_data:
        out.append(f"the clips or captions have changed: {another}")
    elif meta["position"] != position(run, begin.step):
        out.append(
            "this version of wanlora takes the clips or the experts in another order: the run is not comparable with an"
            " uninterrupted one"
        )
    now = running_of(run)
    before = msgspec.convert(meta["running"], Running) if "running" in meta else None
    beside, before_beside = run.base.beside, meta.get("beside", {})
    for part in (p for p in beside if before_beside.get(p, beside[p]) != beside[p]):
        what = part.replace("_", " ").replace("vae", "VAE")
        out.append(f"resumed with another {what}, from {run.base.source.places[part].source}: {another}")
    things = [
        ("card", meta["device"], device_name(run.placement.device)),
        *((f"version of {name}", meta["versions"].get(name, "none"), of) for name, of in versions().items()),
    ]
    if before is None or before.plan.rounds_as != now.plan.rounds_as:
        things.append(("plan", before.plan.whole_text if before else "not recorded", now.plan.whole_text))
    if before is not None:
        things.append(("attention kernel", before.attention.text, now.attention.text))
        things.append(("convolution", before.convolutions or "torch's", now.convolutions or "torch's"))
    for what, old, new in things:
        if old != new:
            out.append(
                f"resumed with another {what} ({new}, before: {old}): that the result equals the uninterrupted run to"
                " the bit is not promised"
            )
    return out
