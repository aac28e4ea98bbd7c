"""The plans worth considering for a job, and the ladder they form: each rung needs more memory than the one below, and
is faster.

The planner does not walk a fixed list: every combination of blocks, activations and chunks is priced, and those that no
other beats in both memory and time are the rungs.
"""

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from itertools import product
from typing import Literal

import msgspec
from msgspec import Struct

from presets.planner.coefficients import FITTED
from presets.planner.costs import Costs
from presets.planner.memory_costs import training_peak
from presets.planner.plan import AT_THE_TURN, Plan, Precision
from presets.planner.sizes import ExpertShape
from presets.planner.workload import Hardware, Load, Workload

ExhaustedPhase = Literal["vram", "step", "vae", "preview", "ram", "lock"]
CHUNKS = (16384, 8192, 4096, 2048, 1024)  # tokens; smaller ones leave the matrix units idle
VAE_FRAMES = (16, 8, 4)  # more at a time is no faster
SLOTS, FEWEST_SLOTS = 3, 2  # one block computes while the next arrives; a third evens things out
# blocks from one plan to the next; the wide one among residents that only smaller clips have a use for
STRIDE, WIDE_STRIDE = 2, 8
ACTIVATION_STRIDE = 8  # blocks more whose activations come to the device when the host's memory was refused
AS_FAST = 1.01  # plans this close count as equally fast: the one that needs less memory is taken
RUNG = 1.02  # one rung of the ladder to the next: this much faster
HIDDEN_WORTH = 1.005  # hidden states are saved on the device where there is room and a step gets this much faster
GRAPHS_WORTH = 1.1  # a plan with them is this much faster than the best without, or is not taken
# a rung down saves the smaller of both: less would not be worth the retry ...
LEAST_SAVED, LEAST_SHARE = 256 * 2**20, 0.05
LEAST_OF_ALL = 0.02  # ... and at least this share
ROOMY = 0.75  # of a machine's RAM: no more is taken for what is only faster
ROOMY_VRAM = 0.9  # of what the card has free: a plan within this is sure to fit


class Candidate(Struct, frozen=True, kw_only=True):
    """A plan with what decides on it."""

    plan: Plan
    need_vram: int
    ram: int
    seconds: float  # of the mean step


class Limits(Struct, frozen=True, kw_only=True):
    """What the user has said about the plan; see `limits_of`."""

    chunked: bool | None = None  # True: always, False: never
    host_activations: bool = False
    resident: Literal["any", "none", "all"] = "any"


def limits_of(low_vram: Literal["auto"] | bool, layer_offloading: Literal["auto"] | bool) -> Limits:
    """The guide's two switches. Low VRAM on: chunks and activations on the host, no kept graphs; off: no chunks. Layer
    offloading on: every block streamed; off: every block resident."""
    return Limits(
        chunked=None if low_vram == "auto" else low_vram,
        host_activations=low_vram is True,
        resident="any" if layer_offloading == "auto" else "none" if layer_offloading else "all",
    )


def worth_graphs(costs: Costs, precision: Precision) -> int:
    """Rows of the largest batch whose blocks wait for the thread that launches them; 0 where none do."""

    def seconds(load: Load, graphed: int) -> float:
        plan = Plan(precision=precision, resident=costs.shape.layers, activations="device", slots=0, graphed=graphed)
        return costs.time.forward(plan, load)[0] + costs.time.backward(plan, load)[0]

    return max(
        (load.rows for load in costs.work.loads if seconds(load, load.rows) * GRAPHS_WORTH < seconds(load, 0)),
        default=0,
    )


def candidates(
    costs: Costs, precision: Precision, limits: Limits, *, compiled: bool = True, graphed: int = 0
) -> Iterator[Plan]:
    """Every plan worth pricing, `vae_frames` left at its least; blocks of up to `graphed` rows as CUDA graphs."""
    layers = costs.shape.layers
    longest = max(load.tokens for load in costs.work.loads)
    mixed = len({load.rows for load in costs.work.loads}) > 1
    useful = [c for c in CHUNKS if c < longest] or [CHUNKS[-1]]
    chunks = useful if limits.chunked else [0] if limits.chunked is False else [0, *useful]
    counts = sorted({*range(0, layers, STRIDE), layers})
    # CUDA graphs recompute: no block keeps its own where all clips are recorded
    none_kept = limits.host_activations or limits.resident == "none" or costs.memory.tail.rows <= graphed
    for kept in [0] if none_kept else counts:
        places: list[Literal["host", "device"]] = (
            ["host"] if limits.host_activations else ["host", "device"] if kept + AT_THE_TURN < layers else ["device"]
        )
        for activations, chunk in product(places, chunks):
            # with so many residents nobody waits for a copy: more of them would only let smaller clips keep more
            hidden = False
            for resident in [layers] if limits.resident == "all" else [r for r in counts if r >= kept]:
                if hidden and resident % WIDE_STRIDE:
                    continue
                slots = min(SLOTS, layers - resident)
                plan = costs.memory.filled(
                    Plan(
                        precision=precision,
                        resident=resident,
                        kept=kept,
                        activations=activations,
                        chunk=chunk,
                        slots=slots,
                        vae_frames=VAE_FRAMES[-1],
                        compiled=compiled,
                        any_size=compiled and costs.work.several_sizes,
                        graphed=graphed,
                    )
                )
                plan = costs.memory.locked(plan)
                yield plan
                if (
                    activations == "host"
                    and not limits.host_activations
                    and (lean := within_ram(costs, plan)) is not None
                ):
                    yield costs.memory.locked(lean)
                if resident == 0 and chunk:
                    yield msgspec.structs.replace(plan, slots=FEWEST_SLOTS)
                hidden = hidden or costs.step(plan).copies == 0
                if limits.resident == "none" or (hidden and not mixed):
                    break


def within_ram(costs: Costs, plan: Plan) -> Plan | None:
    """The plan with so many of its activations on the device that the host's memory does for the rest; None when it
    does anyway, or all would have to stay."""
    lacking = sum(costs.memory.ram(plan).values()) + FITTED.ram_margin - costs.hardware.ram_free
    if lacking <= 0:
        return None
    stay = plan.last_on_device + math.ceil(lacking / costs.memory.activations(plan))
    return msgspec.structs.replace(plan, activations_on_device=stay) if stay < costs.shape.layers - plan.kept else None


def with_activations_on_device(costs: Costs, plan: Plan, vram: float) -> Plan:
    """The plan with as many of its host activations on the device as keep its need for VRAM within `vram`."""

    def staying(blocks: int) -> Plan:
        return msgspec.structs.replace(plan, activations_on_device=blocks)

    counts = range(plan.last_on_device + 1, costs.shape.layers - plan.kept)
    more = bisect_right(counts, vram, key=lambda blocks: rung(costs, staying(blocks)).need_vram)
    return staying(plan.last_on_device + more) if more else plan


def with_hidden_saved(costs: Costs, plan: Plan) -> Plan:
    """The plan with the hidden states inside the blocks saved as well, where the other activations are, if that is
    faster and sure to fit; a quarter of the host's memory stays for others."""
    if not plan.compiled or plan.graphed:
        return plan
    sure, hardware = ROOMY_VRAM * costs.hardware.vram_free, costs.hardware
    # the processes of a host share that; what is free is this one's part already
    room = min(hardware.ram_free - FITTED.ram_margin, ROOMY * hardware.ram_total / costs.work.sharers)
    more = costs.memory.filled(msgspec.structs.replace(plan, save_hidden=True, also_kept=(), activations_on_device=0))
    if plan.activations_on_device:
        more = with_activations_on_device(costs, more, sure)
    found = rung(costs, costs.memory.locked(more))
    fits = found.need_vram <= sure and found.ram <= room and found.plan.pinned == plan.pinned
    worth = AS_FAST if plan.activations == "host" else HIDDEN_WORTH
    return found.plan if fits and found.seconds * worth <= costs.step(plan).total else plan


def with_gelu_kept(costs: Costs, plan: Plan) -> Plan:
    """The plan with the GELU in the graphs that it keeps, where that is sure to fit."""
    if not (plan.kept or plan.also_kept):
        return plan
    more = msgspec.structs.replace(plan, keep_gelu=True)
    return more if rung(costs, more).need_vram <= ROOMY_VRAM * costs.hardware.vram_free else plan


def rung(costs: Costs, plan: Plan) -> Candidate:
    _, reserved = costs.memory.vram(plan)
    return Candidate(
        plan=plan,
        need_vram=int(reserved + FITTED.context),
        ram=sum(costs.memory.ram(plan).values()),
        seconds=costs.step(plan).total,
    )


def with_vae_frames(costs: Costs, plan: Plan, most: int = VAE_FRAMES[0]) -> Plan:
    """As many frames through the VAE at once, up to `most`, as raise no peak that the plan has anyway."""
    phases, reserved = costs.memory.vram(plan)
    for frames in [f for f in VAE_FRAMES if plan.vae_frames < f <= most]:
        wider = msgspec.structs.replace(plan, vae_frames=frames)
        its_phases, its_reserved = costs.memory.vram(wider)
        if training_peak(its_phases) <= training_peak(phases) and its_reserved <= reserved:
            return wider
    return plan


def priced(
    costs: Costs, precision: Precision, limits: Limits, *, compiled: bool = True, graphed: int = 0
) -> list[Candidate]:
    """All candidates with their price."""
    plans = candidates(costs, precision, limits, compiled=compiled, graphed=graphed)
    return [rung(costs, plan) for plan in plans]


def as_fast(rungs: list[Candidate]) -> list[Candidate]:
    """Those that take no more time than the fastest of them, or so little more that nobody would notice."""
    fastest = min(r.seconds for r in rungs)
    return [r for r in rungs if r.seconds <= AS_FAST * fastest]


def frontier(rungs: Iterable[Candidate]) -> list[Candidate]:
    """Those that nothing beats, by rising memory and falling time, each a rung apart in time."""
    out: list[Candidate] = []
    for r in sorted(rungs, key=lambda r: (r.need_vram, r.seconds)):
        if not out or r.seconds * RUNG < out[-1].seconds:
            out.append(r)
    return out


def next_down(
    plan: Plan,
    work: Workload,
    hardware: Hardware,
    shape: ExpertShape | None = None,
    *,
    limits: Limits | None = None,
    exhausted: ExhaustedPhase = "vram",
    tried: Collection[Plan] = (),
) -> Plan | None:
    """The fastest plan that takes less than `plan`, for after memory ran out. None at the last rung. Of plans that are
    about as fast, the smallest; none that was `tried` before: where memory of the card and of the host run out in turn,
    what spares the one takes the other.

    `exhausted` says what ran out: `vram` anywhere, or the phase it ran out in (`step`, `vae`, `preview`), whose own
    peak is then lowered and no other raised; or `ram`, for host memory that was refused: then VRAM may rise to what is
    free; or `lock`, for page-locking that was: then the same goes without. The precision stays. `hardware` is the
    machine before the run: what the run itself holds counts as free.
    """
    if exhausted == "lock":
        assert plan.pinned, "nothing of it is locked"
        return msgspec.structs.replace(plan, pinned=False)
    costs = Costs(work, hardware, shape)
    limits = limits or Limits()
    phases, reserved = costs.memory.vram(plan)
    ram = sum(costs.memory.ram(plan).values())

    def saves(theirs: float, ours: float) -> bool:
        return theirs <= ours - max(LEAST_OF_ALL * ours, min(LEAST_SAVED, LEAST_SHARE * ours))

    def as_here(other: Plan) -> Plan:
        return msgspec.structs.replace(other, any_size=plan.any_size, pinned=plan.pinned and other.pinned)

    def better(other: Plan) -> bool:
        if as_here(other) in tried:
            return False
        theirs, their_reserved = costs.memory.vram(other)
        their_ram = sum(costs.memory.ram(other).values())
        if exhausted == "ram":
            return saves(their_ram, ram) and their_reserved + FITTED.context <= hardware.vram_free
        if their_ram > max(ram, hardware.ram_free - FITTED.ram_margin):
            return False
        if exhausted == "vram":
            return saves(training_peak(theirs), training_peak(phases)) and their_reserved <= reserved
        return saves(theirs.get(exhausted, 0), phases.get(exhausted, 0)) and their_reserved <= reserved

    narrower = [
        p for f in VAE_FRAMES if f < plan.vae_frames and better(p := msgspec.structs.replace(plan, vae_frames=f))
    ]
    if exhausted == "vae" and narrower:
        return narrower[0]
    spared = (
        range(plan.last_on_device + ACTIVATION_STRIDE, costs.shape.layers - plan.kept, ACTIVATION_STRIDE)
        if exhausted == "ram" and plan.activations == "host" and not limits.host_activations
        else ()
    )
    narrower += [p for p in [msgspec.structs.replace(plan, save_hidden=False)] if plan.save_hidden and better(p)]
    narrower += [p for blocks in spared if better(p := msgspec.structs.replace(plan, activations_on_device=blocks))]
    found = narrower + [
        p
        for graphed in sorted({0, plan.graphed})
        for p in candidates(costs, plan.precision, limits, compiled=plan.compiled, graphed=graphed)
        if better(p)
    ]
    if not found:
        return None
    seconds = [costs.step(p).total for p in found]
    as_fast = [p for p, s in zip(found, seconds, strict=True) if s <= min(seconds) * AS_FAST]
    chosen = min(as_fast, key=lambda p: (costs.memory.vram(p)[1], -p.vae_frames))
    wider = with_vae_frames(costs, chosen, plan.vae_frames)
    return as_here(wider if better(wider) else chosen)
