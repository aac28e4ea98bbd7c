"""The plan of a run on this machine, and the next smaller one when memory runs out all the same.

Costs are predicted by presets.planner; a plan is put into effect by engine.training.placement.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import msgspec
import torch
from msgspec import Struct

from engine.memory.measure_card import measured_rates
from engine.system.pinned_memory import lockable_bytes
from engine.system.placement import Placement
from engine.system.progress import Progress
from engine.wan.attention import Attention
from presets.errors import UserError
from presets.facts.facts import Facts, used_gpus
from presets.job.schema import Job
from presets.planner.candidates import ExhaustedPhase, limits_of, next_down
from presets.planner.cards import gpu_hardware
from presets.planner.choose import choose_work
from presets.planner.coefficients import FITTED
from presets.planner.costs import predict
from presets.planner.measured_rates import Rates
from presets.planner.memory_costs import MemoryCosts
from presets.planner.plan import Plan, Precision
from presets.planner.sizes import GIB, ExpertShape
from presets.planner.workload import Hardware, Workload, shape_of, workload_of
from presets.text import human

CONTEXT = 0.6 * GIB  # what CUDA itself holds here
GREW = 0.75 * GIB  # more than CUDA's own share grows while kernels are loaded
# what any machine computes
ANYWHERE: dict[str, Precision] = {
    "int8": "int8",
    "qfloat8": "qfloat8",
    "qint8": "qint8",
    "qint4": "qint4",
    "qint4+ara": "qint4",
}


class Running(Struct, frozen=True):
    """How a run is held and computed; a checkpoint keeps it. Another plan or kernel rounds otherwise, so a resume
    begins with the same."""

    plan: Plan
    attention: Attention
    convolutions: str = ""  # of the VAE's encoder, those that are ours (engine.encode.conv_kernels)


@dataclass(frozen=True)
class Planning:
    """What the plan was chosen from, kept for the next choice. `hardware` is None where nothing is planned: on the CPU,
    for a toy."""

    plan: Plan
    why: str
    hardware: Hardware | None
    work: Workload
    shape: ExpertShape
    rates: Rates | None = None  # measured on this card
    others: int = 0  # bytes of the card outside torch's count when the plan was made
    # done once under this plan, where memory ran out:
    tidied: bool = False  # memory in pieces was laid out anew
    dropped: bool = False  # CUDA graphs gave room to a preview
    downs: int = 0  # how often a smaller plan was taken since the attempt began ...
    short: str = ""  # ... and why the last time
    failed: tuple[Plan, ...] = ()  # plans that memory ran out under since then

    def unlocked(self) -> "Planning":
        """The same plan without page-locked memory."""
        return replace(self, plan=msgspec.structs.replace(self.plan, pinned=False))

    def placed(self, placement: Placement) -> Placement:
        """The same, its host memory locked only as the plan has it."""
        return replace(placement, pinned=placement.pinned and self.plan.pinned)

    @property
    def batched_guidance(self) -> bool:
        """Whether previews ask both prompts in one batch of two."""
        return self.hardware is not None and MemoryCosts(self.work, self.hardware, self.shape).batched_guidance(
            self.plan
        )


def plan_run(
    job: Job,
    facts: Facts,
    device: torch.device,
    *,
    vram: int | None,
    before: Plan | None = None,
    like: Plan | None = None,
    sharers: int = 1,
    progress: Progress,
) -> Planning:
    """The plan of `before` a resume where it still fits (with its precision, which "auto" may choose otherwise today),
    else the fastest that does; or that of another rank, `like`, and no other: two plans round differently. `vram` caps
    the card's memory, in bytes; so many processes of this host share the frozen weights. Raises UserError with the
    numbers."""
    work, shape = msgspec.structs.replace(workload_of(job, facts), sharers=sharers), shape_of(facts)
    if device.type != "cuda" or facts.tiny:
        plan = Plan(
            precision=ANYWHERE.get(job.quantization.transformer, "none"),
            resident=shape.layers,
            slots=0,
            activations="device",
            compiled=False,
            vae_frames=8,
        )
        return Planning(plan, "a toy model, or no GPU", None, work, shape)
    gpus = used_gpus(job, facts)
    if not gpus or facts.machine is None:
        raise UserError("the GPU could not be read", where="job.gpus", fix="Look at wanlora doctor")
    rates = measured_rates(gpus[0], device, progress)
    hardware = gpu_hardware(gpus[0], facts.machine, rates=rates)
    if vram is not None:
        hardware = msgspec.structs.replace(
            hardware, vram_total=min(hardware.vram_total, vram), vram_free=min(hardware.vram_free, vram)
        )
    if facts.machine.wsl:
        hardware = msgspec.structs.replace(hardware, lockable=lockable_bytes(hardware.ram_free // 2))
    if like is not None:
        return _like(like, work, hardware, shape, rates, card_memory(device))
    choice = choose_work(work, job, facts, hardware)
    plan, p, why = choice.plan, choice.prediction, choice.why
    asked = job.quantization.transformer
    if before is not None and work.several_sizes and before.compiled:  # of previews too, that may have come since
        before = msgspec.structs.replace(before, any_size=True)
    if before is not None:
        before = MemoryCosts(work, hardware, shape).locked(before)
    if (
        before is not None
        and before != plan
        and (asked == "auto" or before.precision == plan.precision)
        and fits(before, work, hardware, shape)
    ):
        plan, p, why = (
            before,
            predict(before, work, hardware, shape),
            f"as before the resume (begun anew it would be: {plan.whole_text}, {p.seconds.total:.2f} s/step)",
        )
    why = (
        f"{why}; predicted {p.peak_vram / GIB:.1f} GiB of VRAM, {p.ram / GIB:.0f} GiB of RAM, {p.seconds.total:.2f}"
        " s/step"
    )
    seen = card_memory(device)
    return Planning(plan, why, hardware, work, shape, rates, others=seen.others if seen else 0)


def _like(
    plan: Plan, work: Workload, hardware: Hardware, shape: ExpertShape, rates: Rates | None, seen: "CardMemory | None"
) -> Planning:
    """For a rank that has to hold and compute its part as the first does. Raises UserError where it cannot."""
    plan = MemoryCosts(work, hardware, shape).locked(plan)
    if not fits(plan, work, hardware, shape):
        p = predict(plan, work, hardware, shape)
        raise UserError(
            f"the first GPU's plan ({plan.text}) does not fit on {hardware.name}: it needs {human(p.need_vram)} of VRAM"
            f" and {human(p.ram + FITTED.ram_margin)} of RAM, and {human(hardware.vram_free)} and"
            f" {human(hardware.ram_free)} are free for it",
            where="job.gpus",
            fix="Name GPUs with as much memory free, or put the one with least in front: the first decides on the plan",
        )
    return Planning(plan, "as the first rank has it", hardware, work, shape, rates, others=seen.others if seen else 0)


def fits(plan: Plan, work: Workload, hardware: Hardware, shape: ExpertShape) -> bool:
    """Whether there is room for a plan, as far as can be told before it runs."""
    p = predict(plan, work, hardware, shape)
    return p.need_vram <= hardware.vram_free and p.ram + FITTED.ram_margin <= hardware.ram_free


class CardMemory(NamedTuple):
    """A card's memory as CUDA and torch count it, in bytes."""

    total: int
    free: int
    reserved: int  # of it, held by torch here ...
    allocated: int  # ... and in use

    @property
    def others(self) -> int:
        """Held by other programs, and by CUDA itself here (about half a GiB)."""
        return max(0, self.total - self.free - self.reserved)


def card_memory(device: torch.device) -> CardMemory | None:
    """To be asked where memory ran out, while the failed attempt's tensors are alive. None without a card."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return CardMemory(total, free, torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device))


class Shortage(NamedTuple):
    """Why memory ran out."""

    cause: Literal["shrunk", "others", "pieces", "small", "host"]
    text: str
    lost: int = 0  # bytes of the card that were free when the plan was made, and no longer are


def shortage(now: CardMemory | None, planning: Planning) -> Shortage:
    """Which cause the card's numbers show: others took memory since, or held it before; ours is in pieces; or there is
    too little."""
    if now is None:
        return Shortage("small", "out of memory")
    lost = now.others - planning.others
    if lost > GREW:
        return Shortage("shrunk", f"other programs took {lost / GIB:.1f} GiB of the card since the run began", lost)
    if now.others > 0.1 * now.total + GIB:
        return Shortage("others", f"other programs hold {(now.others - CONTEXT) / GIB:.1f} GiB of the card")
    loose = now.reserved - now.allocated
    if loose > 0.2 * now.reserved:
        return Shortage("pieces", f"{loose / GIB:.1f} GiB are free but in pieces too small")
    cap = min(now.total, planning.hardware.vram_total) if planning.hardware else now.total
    return Shortage("small", f"{now.allocated / GIB:.1f} GiB in use of {cap / GIB:.1f}")


def smaller(job: Job, planning: Planning, exhausted: ExhaustedPhase, lost: int = 0) -> Plan | None:
    """The next smaller plan; a still smaller one when the card has `lost` bytes less than before and the next would not
    fit. None when there is none."""
    hardware = planning.hardware
    if hardware is None:
        return None
    hardware = msgspec.structs.replace(hardware, vram_free=max(0, hardware.vram_free - lost))
    limits = limits_of(job.model.low_vram, job.model.layer_offloading)

    def below(plan: Plan) -> Plan | None:
        return next_down(
            plan,
            planning.work,
            hardware,
            planning.shape,
            limits=limits,
            exhausted=exhausted,
            tried=planning.failed,
        )

    found = plan = below(planning.plan)
    while (
        lost
        and plan is not None
        and predict(plan, planning.work, hardware, planning.shape).need_vram > hardware.vram_free
    ):
        found, plan = plan, below(plan)
    return plan or found
