"""How a run's experts lie in memory and are computed: the plan and kernels that a resume keeps, and the next smaller
plan when memory runs out.

What fits is predicted by engine.memory.planning. A part that does not even load is engine.memory.out_of_memory's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec
import torch
from diffusers import AutoencoderKLWan

from engine.encode.latents import Encoder, PlainEncoder
from engine.encode.vae_encoder import ClipEncoder
from engine.memory.planning import Planning, Running, Shortage, card_memory, shortage, smaller
from engine.parallel.team import Team
from engine.runfolder.resume import ResumePoint
from engine.system.device import device_name, memory_errors, release
from engine.system.pinned_memory import HostMemoryRefused
from engine.system.placement import Placement
from engine.training.context import Run
from engine.wan import attention
from engine.wan.attention import Attention
from presets import VERSION
from presets.errors import UserError
from presets.job.schema import Job
from presets.planner.candidates import ExhaustedPhase
from presets.planner.plan import LESS_MEMORY, Plan

WHERE: dict[ExhaustedPhase, str] = {
    "vram": "run",
    "step": "training step",
    "vae": "VAE",
    "preview": "preview",
    "ram": "host's memory",
    "lock": "host's page-locked memory",
}
# fields by which the user decides on the plan
PLANNED = (
    "job.gpus_per_clip",
    "model.low_vram",
    "model.layer_offloading",
    "model.cuda_graphs",
    "quantization.transformer",
)


@cache
def versions() -> dict[str, str]:
    """Of the packages that the numbers of a run depend on."""
    return {
        "wanlora-tui": VERSION,
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        **attention.versions(),
    }


def running_before(begin: ResumePoint, device: torch.device) -> Running | None:
    """How the checkpoint's run was held and computed; None where it is resumed on another card or with other
    versions."""
    meta = begin.meta
    if meta.get("device") != device_name(device) or meta.get("versions") != versions() or "running" not in meta:
        return None
    return msgspec.convert(meta["running"], Running)


def plan_before(begin: ResumePoint, running: Running | None) -> Plan | None:
    """The checkpoint's plan, unless the job has since been changed in what it says of the plan."""
    return running.plan if running and not any(c.field in PLANNED for c in begin.since) else None


def kernels_of(
    job: Job, planning: Planning, running: Running | None, config: dict[str, Any], placement: Placement, *, tokens: int
) -> tuple[Attention, str]:
    """(the attention of a run, why): a resumed run's own if its checkpoint tells all of it, else the fastest that was
    measured on this card, else the fastest measured now."""
    fixed = job.training.deterministic
    if running and running.attention.deterministic == fixed and running.attention.text_forward_kernel:
        return running.attention, "as before the resume"
    if planning.rates:
        fastest = planning.rates.deterministic_attention if fixed else planning.rates.attention
        return (
            Attention(
                fastest.forward_kernel,
                fastest.backward_kernel,
                fixed,
                fastest.text_forward_kernel,
                fastest.text_backward_kernel,
            ),
            f"the fastest when this card was measured ({planning.rates.date})",
        )
    return attention.choose(
        placement.device,
        tokens=tokens,
        heads=config["num_attention_heads"],
        width=config["attention_head_dim"],
        dtype=placement.dtype,
        deterministic=fixed,
    )


def make_encoder(vae: AutoencoderKLWan, plan: Plan, ours: str) -> Encoder:
    """`ours`: the convolutions that our kernel takes (`engine.encode.conv_kernels`)."""
    return (
        ClipEncoder(vae, frames=plan.vae_frames, compiled=plan.compiled, ours=ours)
        if next(vae.parameters()).is_cuda
        else PlainEncoder(vae)
    )


def why_short(run: Run) -> Shortage:
    """Why memory ran out. To be asked in the handler, while what filled it is there."""
    return shortage(card_memory(run.placement.device), run.planning)


def refused(error: HostMemoryRefused) -> tuple[ExhaustedPhase, Shortage]:
    """What ran out on the host, and why."""
    return "lock" if error.locking else "ram", Shortage("host", error.what)


def replan(run: Run, exhausted: ExhaustedPhase, why: Shortage) -> None:
    """Memory ran out (where `exhausted` says): take the next smaller plan and log it. Memory in pieces is laid out anew
    first, and CUDA graphs are dropped for a preview, each once under each plan. To be called outside the handler, whose
    traceback holds on to tensors. Raises UserError when no smaller plan is left."""
    release(run.placement.device)
    planning, short = run.planning, f"out of memory in the {WHERE[exhausted]}: {why.text}"
    tidy = why.cause == "pieces" and not planning.tidied
    drop = exhausted == "preview" and run.experts.recorded and not planning.dropped
    if tidy or drop:  # the one does the other, but only what was needed is used up
        plan = planning.plan
        planning = replace(planning, tidied=True) if tidy else replace(planning, dropped=True)
        graphs = "" if tidy else "CUDA graphs are dropped, "
        text = f"{short}; {graphs}everything on the card is laid out anew, and the same is tried again"
        run.log.emit("log", level="warning", text=text)
    else:
        planning = replace(planning, failed=(*planning.failed, planning.plan))
        smallest = smaller(run.job, planning, exhausted, why.lost)
        if smallest is None:
            raise UserError(
                f"out of memory in the {WHERE[exhausted]}, and no smaller plan is left ({why.text})",
                where=planning.plan.text,
                fix=LESS_MEMORY,
            )
        plan = smallest
        run.log.emit("replanned", why=short, old=planning.plan.text, new=plan.text)
        planning = replace(planning, downs=planning.downs + 1, short=short, tidied=False, dropped=False)
    run.planning = planning
    place(run, plan)


def place(run: Run, plan: Plan) -> None:
    """Put a plan into effect from now on, or the first smaller one for which there is room. Raises UserError."""
    run.planning = replace(run.planning, plan=plan)
    try:
        with memory_errors():
            run.experts.set_plan(plan)
            run.encoder = make_encoder(run.encoder.vae, plan, run.encoder.ours)
        return
    except torch.OutOfMemoryError:
        exhausted: ExhaustedPhase = "vram"
        why = why_short(run)
    except HostMemoryRefused as e:
        exhausted, why = refused(e)
    replan(run, exhausted, why)


@dataclass(frozen=True)
class _Held:
    """How a rank holds its part by now."""

    plan: Plan
    downs: int
    short: str
    refused: tuple[str, str, str] | None  # a UserError: it could not take the plan of another


def replan_together(run: Run, team: Team, exhausted: ExhaustedPhase, why: Shortage) -> None:
    """`replan` by all ranks that share a step, before they take it again: what is smaller or left is not the same for
    each of them. Raises UserError on all of them where one of them cannot."""
    refused: tuple[str, str, str] | None = None
    try:
        replan(run, exhausted, why)
    except UserError as e:
        refused = (e.what, e.where, e.fix)
    _agree(run, team.part.ranks, team.exchange_sharing, refused)


def place_again(run: Run) -> None:
    """What was under way is laid out anew, under the same plan: by all ranks, which all call it, and end with one plan.
    Raises UserError on all of them where one of them cannot."""
    if run.team is None:
        place(run, run.planning.plan)
        return
    refused: tuple[str, str, str] | None = None
    try:
        place(run, run.planning.plan)
    except UserError as e:
        refused = (e.what, e.where, e.fix)
    _agree(run, range(len(run.team.parts)), run.team.exchange, refused)
    run.settled = run.planning.downs


def settle(run: Run, team: Team) -> None:
    """Where memory ran out on one rank, the others take its plan too, so that all compute alike: that of the rank which
    had to go furthest down. All ranks call it. Raises UserError on all of them where one of them cannot."""
    _agree(run, range(len(team.parts)), team.exchange)
    run.settled = run.planning.downs


def _agree(
    run: Run,
    ranks: Sequence[int],
    exchange: Callable[[_Held], list[_Held]],
    refused: tuple[str, str, str] | None = None,
) -> None:
    while True:
        planning = run.planning
        everyone = exchange(_Held(planning.plan, planning.downs, planning.short, refused))
        for rank, one in zip(ranks, everyone, strict=True):
            if one.refused:
                what, where, fix = one.refused
                raise UserError(f"rank {rank}: {what}", where=where, fix=fix)
        # the first of several
        rank, lowest = max(zip(ranks, everyone, strict=True), key=lambda numbered: numbered[1].downs)
        if all(as_agreed(one.plan) == as_agreed(lowest.plan) for one in everyone):
            run.planning = replace(planning, downs=lowest.downs)
            return
        if as_agreed(planning.plan) != as_agreed(lowest.plan):
            why = f"rank {rank}: {lowest.short}"
            run.log.emit("replanned", why=why, old=planning.plan.text, new=lowest.plan.text)
            release(run.placement.device)
            run.planning = replace(planning, downs=lowest.downs, short=why)
            try:
                place(run, lowest.plan)
            except UserError as e:
                refused = (e.what, e.where, e.fix)


def as_agreed(plan: Plan) -> Plan:
    """What of a plan the ranks have in common. Whether the host's memory is page-locked is each rank's own matter: it
    changes no number."""
    return msgspec.structs.replace(plan, pinned=True)
