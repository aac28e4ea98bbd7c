"""The plan of a run on this machine, and the next rung down when memory runs out all the same."""

import gc
from dataclasses import dataclass

import msgspec
import torch

from engine.rates import rates_of
from presets.check import Facts
from presets.errors import UserError
from presets.facts import used_gpus
from presets.job import Job
from presets.plan import Plan
from presets.planner.cards import gpu_hardware
from presets.planner.choose import choose_for
from presets.planner.inputs import Hardware, Workload, shape_of, workload_of
from presets.planner.rungs import Scarce, limits_of, next_down
from presets.sizes import ExpertShape

GIB = 2**30
ALL = 10_000  # blocks: more than any expert has


@dataclass(frozen=True)
class Planning:
    """What the plan was chosen from, kept for the next choice. `hardware` is None where nothing is planned: on the CPU, for a toy."""

    plan: Plan
    why: str
    hardware: Hardware | None
    work: Workload
    shape: ExpertShape
    batched_guidance: bool = False  # previews ask both prompts in one batch of two


def plan_run(job: Job, facts: Facts, device: torch.device, *, vram: int | None) -> Planning:
    """Choose the fastest plan that fits. `vram` caps the card's memory, in bytes. Raises UserError with the numbers."""
    work, shape = workload_of(job, facts), shape_of(facts)
    if device.type != "cuda" or facts.tiny:
        plan = Plan(precision="none", resident=ALL, stash="device", compiled=False, vae_frames=8)
        return Planning(plan, "a toy model, or no GPU", None, work, shape)
    gpus = used_gpus(job, facts)
    if not gpus or facts.machine is None:
        raise UserError("the GPU could not be read", where="job.gpus", fix="Look at wanlora doctor")
    hardware = gpu_hardware(gpus[0], facts.machine, rates=rates_of(gpus[0], device))
    if vram is not None:
        hardware = msgspec.structs.replace(hardware, vram_total=min(hardware.vram_total, vram), vram_free=min(hardware.vram_free, vram))
    choice = choose_for(job, facts, hardware)
    p = choice.prediction
    why = f"{choice.why}; predicted {p.peak_vram / GIB:.1f} GiB of VRAM, {p.ram / GIB:.0f} GiB of RAM, {p.seconds.total:.2f} s/step"
    return Planning(choice.plan, why, hardware, work, shape)


def smaller(job: Job, planning: Planning, scarce: Scarce) -> Plan | None:
    """One rung down from the present plan, or None at the last."""
    if planning.hardware is None:
        return None
    limits = limits_of(job.model.low_vram, job.model.layer_offloading)
    return next_down(planning.plan, planning.work, planning.hardware, planning.shape, limits=limits, scarce=scarce)


def diagnose(device: torch.device) -> str:
    """Why the card ran out, as far as its numbers tell: others' memory, fragmentation, or simply too little."""
    free, total = torch.cuda.mem_get_info(device)
    reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    others = total - free - reserved
    if others > 0.1 * total + GIB:
        return f"other programs hold {others / GIB:.1f} GiB of the card"
    if reserved - allocated > 0.2 * reserved:
        return f"{(reserved - allocated) / GIB:.1f} GiB are free but in pieces too small"
    return f"{allocated / GIB:.1f} GiB in use of {total / GIB:.1f}"


def release(device: torch.device) -> None:
    """Give back what a failed step left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
