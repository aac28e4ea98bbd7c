"""What several GPUs make of a job's plan: which share each has, what it takes there, and how long the run is then.

Experts train apart, or ranks share the micro-batches of each step, or each clip, or several of these
(presets.job.gpu_shares). What a micro-batch takes is the plan's own; what is added is the exchange of gradients. Each
rank receives those of all others in the order of the ranks and adds them up itself, as one process would, so what it
receives grows with their number. Ranks that share a clip also exchange tokens for heads around each self-attention, and
take turns to encode. The latents that they hand on then take no time beside that. Previews are made by the first GPU,
and computed by those that share clips with it; held-out clips are shared out to all.
"""

import math
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from presets.facts.facts import Facts
from presets.job.expert_schedule import EXPERTS, Expert, steps_of, trained_experts
from presets.job.gpu_shares import apart, at_once, for_one_step, of_experts, of_previews, require_fits
from presets.job.schema import Job
from presets.planner.choose import Choice, DoesNotFit, choose_work
from presets.planner.coefficients import FITTED as c
from presets.planner.costs import Costs, predict
from presets.planner.plan import Plan
from presets.planner.sizes import OPTIMIZER_BYTES, ExpertShape, disk_need
from presets.planner.workload import Hardware, Load, Workload, shape_of, workload_of

FREE = 0.95  # of a card's memory: nobody else uses it
# Between cards without NVLink everything passes through host memory, in and out at once. NVLink is several times faster
THROUGH_HOST = 0.5  # of the copy rate
COLLECTIVE = 50e-6  # seconds until a collective of N ranks begins, for each of them. An estimate
ROUND = 2e-3  # seconds of what ranks tell each other about a micro-batch, through gloo. An estimate
TURNS = 4, 8  # all-to-alls of a block, forward and backward: of q, k, v, the output and their gradients
PACKED_GBPS = 1.0  # at which a learner is packed, sent and unpacked. An estimate
# Of a stop. All but the first are estimates
LEAST_GRACE = 180  # seconds: also for a part of the base model that is just being loaded, or a step of a preview
SLOW_DISK = 100e6  # bytes a second, written and synced: a file system that many nodes share
UNPLANNED = 60.0  # seconds of a micro-batch where no plan says it: the longest clips on a slow card


class Share(Struct, frozen=True, kw_only=True):
    """What one GPU does, and what it takes there."""

    rank: int
    expert: Expert | None  # the only one that it trains; None: it has a part in every step
    need_vram: int  # bytes
    ram: int  # bytes of host memory of its process, with its part of the weights that all share


class Shared(Struct, frozen=True, kw_only=True):
    """A job on several GPUs."""

    gpus: int
    how: str  # for people
    shares: list[Share]
    choice: Choice  # the plan that all of them have
    seconds_per_step: float  # of the run: what its steps take, by their number
    exchange_seconds: float  # of each step that ranks share
    received: int  # bytes of gradients that each rank receives in it
    turned: int  # bytes that each rank receives in it from those that share its clips, and ...
    turn_seconds: float  # ... what that takes
    total: float  # seconds of the whole run
    total_of_one: float  # on one of these GPUs, with the same plan
    link_gbps: float

    @property
    def times_as_fast(self) -> float:
        return self.total_of_one / self.total


@dataclass(frozen=True)
class Exchange:
    """One round: a micro-batch of each rank."""

    sent: int  # bytes by each rank
    received: int  # bytes by each rank
    seconds: float


def gradient_bytes(work: Workload, shape: ExpertShape, plan: Plan) -> int:
    """Bytes that a rank sends of one micro-batch: the gradient of every use of a LoRA parameter, in fp32. What follows
    the attention is used once for each run of tokens, and everything once for each loss term."""
    width, ffn = shape.width, shape.ffn
    chunks = sum(load.share * plan.chunks(load.tokens) for load in work.loads)
    once, each_run = 10 * width, 6 * width + 2 * (width + ffn)  # in + out of the linears before it, and of those after
    return round(4 * shape.layers * work.rank * work.terms * (once + chunks * each_run))


def exchange(sent: int, sharing: int, *, link_gbps: float, memory_gbps: float) -> Exchange:
    """A round of `sharing` ranks that send so many bytes each: a ring, then the sum in their order."""
    if sharing == 1:
        return Exchange(0, 0, 0.0)
    received = (sharing - 1) * sent
    adding = 3 * sharing * sent / (memory_gbps * 1e9)  # the sum is read and written, what came is read
    return Exchange(sent, received, received / (link_gbps * 1e9) + adding + sharing * COLLECTIVE + ROUND)


def turning(work: Workload, shape: ExpertShape, *, link_gbps: float) -> tuple[float, float]:
    """(bytes that a rank receives, seconds) of one micro-batch whose clips are shared: tokens for heads and back."""
    forward, backward = TURNS
    count = work.terms * (forward + backward) + work.extra_forwards * forward
    rows = sum(load.share * load.rows for load in work.loads)
    return _turned(count, rows, work.largest.split, shape, link_gbps=link_gbps)


def _turned(each: int, rows: float, split: int, shape: ExpertShape, *, link_gbps: float) -> tuple[float, float]:
    """The same, of so many all-to-alls in each block, and rows of each of those that share the clip."""
    if split == 1:
        return 0.0, 0.0
    count, received = shape.layers * each, rows * 2 * shape.width * (split - 1) / split
    return count * received, count * (received / (link_gbps * 1e9) + split * COLLECTIVE)


def without_steps(job: Job, work: Workload, gpus: int) -> Workload:
    """The work with previews and held-out clips as one of so many GPUs has them: of the clips the largest part that one
    has."""
    previews, held = work.previews, work.validation
    if previews is not None:
        previews = msgspec.structs.replace(previews, split=of_previews(job, gpus))
    if held is not None:
        clips = sum(count for _, count in held.clips) or 1.0
        part = min(1.0, math.ceil(clips / at_once(job, gpus)) / clips)
        held = msgspec.structs.replace(
            held,
            clips=tuple((bucket, part * count) for bucket, count in held.clips),
            passes=held.passes // 2 if apart(job, gpus) else held.passes,
            split=job.job.gpus_per_clip,
        )
    return msgspec.structs.replace(work, previews=previews, validation=held)


def turned_without_steps(work: Workload, shape: ExpertShape, *, link_gbps: float) -> float:
    """Seconds of the run in which GPUs exchange tokens for heads in previews and of held-out clips."""
    passes: list[tuple[float, Load]] = []
    if (previews := work.previews) is not None:
        count = previews.sets * previews.prompts * previews.passes
        passes.append((count, Load(previews.bucket, 1, 1.0, previews.split)))
    if (held := work.validation) is not None:
        passes += [(held.times * held.passes * count, Load(bucket, 1, 1.0, held.split)) for bucket, count in held.clips]
    one = [_turned(TURNS[0], load.rows, load.split, shape, link_gbps=link_gbps)[1] for _, load in passes]
    return sum(
        count * (seconds + (ROUND if load.split > 1 else 0.0))
        for (count, load), seconds in zip(passes, one, strict=True)
    )


def share_out(
    job: Job, facts: Facts, hardware: Hardware, gpus: int, *, hosts: int = 1, link_gbps: float | None = None
) -> Shared:
    """The job on so many GPUs in all of `hosts` like `hardware`, on each of which the processes share the frozen
    weights. `link_gbps`: what one receives from the others, 10^9 bytes a second. Raises UserError, for a number that
    cannot share its steps with those that can, and DoesNotFit."""
    require_fits(job, gpus)
    sharing, divided, together = for_one_step(job, gpus), apart(job, gpus), at_once(job, gpus)
    of_host = gpus // hosts
    each = msgspec.structs.replace(hardware, ram_free=hardware.ram_free // of_host)
    of_one, shape = msgspec.structs.replace(workload_of(job, facts), sharers=of_host), shape_of(facts)
    work = without_steps(job, of_one, gpus)
    choice = choose_work(work, job, facts, each)
    link = hardware.copy_gbps * THROUGH_HOST if link_gbps is None else link_gbps
    shares = []
    for rank in range(gpus):
        expert = trained_experts(job)[rank // sharing] if divided else None
        shows = rank < of_previews(job, gpus)
        part = job if shows else of_experts(job, [expert] if expert else trained_experts(job))
        own = without_steps(job, msgspec.structs.replace(workload_of(part, facts), sharers=of_host), gpus)
        if own.previews is not None:
            own = msgspec.structs.replace(own, previews=msgspec.structs.replace(own.previews, whole=rank == 0))
        found = predict(choice.plan, own, each, shape)
        # of the weights as much as any other, whichever it maps: the host holds all of them once
        ram = found.ram - found.ram_held["weights"] + choice.prediction.ram_held["weights"]
        shares.append(Share(rank=rank, expert=expert, need_vram=found.need_vram, ram=ram))
    costs = Costs(work, hardware, shape)
    step = costs.time.step(choice.plan)
    one = exchange(gradient_bytes(work, shape, choice.plan), sharing, link_gbps=link, memory_gbps=hardware.memory_gbps)
    turned, turn_seconds = turning(work, shape, link_gbps=link)
    rounds = work.accumulation // together
    encoded_elsewhere = step.vae * (1 - 1 / job.job.gpus_per_clip)  # each rank encodes some of their clips, for all
    shared_step = (step.total - step.other - encoded_elsewhere) / together + step.other
    shared_step += rounds * (one.seconds + turn_seconds)
    steps = steps_of(job)
    waited = max(steps.values()) if divided else work.steps
    training = waited * shared_step
    if divided:
        learner = shape.lora_parameters(work.rank) * (4 + OPTIMIZER_BYTES[work.optimizer])
        turns = work.steps / (2 * job.multistage.switch_every)
        training += turns * learner / (hardware.copy_gbps * c.unlocked * 1e9)  # what a stop may have to put back
        training += work.saves * learner / (PACKED_GBPS * 1e9)
    whole = msgspec.structs.replace(
        of_one,
        loads=tuple(msgspec.structs.replace(load, split=1) for load in work.loads),
        previews=of_one.previews and msgspec.structs.replace(of_one.previews, split=1),
    )
    rest = costs.time.run(choice.plan) - work.steps * step.total + turned_without_steps(work, shape, link_gbps=link)
    return Shared(
        gpus=gpus,
        how=_how(divided, together, job.job.gpus_per_clip),
        shares=shares,
        choice=choice,
        seconds_per_step=training / work.steps,
        exchange_seconds=rounds * one.seconds,
        received=rounds * one.received,
        turned=round(rounds * turned),
        turn_seconds=rounds * turn_seconds,
        total=training + rest,
        total_of_one=Costs(whole, hardware, shape).time.run(choice.plan),
        link_gbps=link,
    )


def stop_grace(job: Job, shape: ExpertShape, gpus: int, choice: Choice | None) -> int:
    """Seconds from the signal that asks processes on so many GPUs to stop until they have ended what they are at and
    saved. `choice`: the plan, where there is one."""
    one = choice.prediction.largest.total if choice else UNPLANNED * job.training.gradient_accumulation
    saving = 2 * disk_need(job, shape).checkpoint / SLOW_DISK  # with the LoRA files beside it
    return math.ceil(max(LEAST_GRACE, LEAST_GRACE / 3 + 2 * one / for_one_step(job, gpus) + saving))


def two_at_once(job: Job, facts: Facts, hardware: Hardware) -> tuple[list[int], Shared] | None:
    """The job's GPU and a second of its kind that is as free, and the job with an expert on each. None where there is
    no such GPU, where the experts would not train apart, and where the host has no memory for both. `hardware`: the
    job's GPU with nothing else running. Raises UserError where the card does not run its precision."""
    if len(job.job.gpus) != 1 or not apart(job, 2) or facts.machine is None:
        return None
    mine = next((gpu for gpu in facts.machine.gpus if gpu.index == job.job.gpus[0]), None)
    free = [
        gpu.index
        for gpu in facts.machine.gpus
        if mine is not None
        and gpu.index != mine.index
        and not gpu.error
        and (gpu.name, gpu.vram_total) == (mine.name, mine.vram_total)
        and gpu.vram_free >= FREE * gpu.vram_total
    ]
    try:
        return ([job.job.gpus[0], free[0]], share_out(job, facts, hardware, 2)) if free else None
    except DoesNotFit:
        return None


def _how(divided: bool, together: int, each: int) -> str:
    both = f"{' and '.join(expert.replace('_', ' ') for expert in EXPERTS)} train apart"
    share = f"{together} {'GPUs' if each == 1 else 'groups of them'} share the micro-batches of each step"
    parts = [f"{each} GPUs share each clip"] if each > 1 else []
    parts += [share] if together > 1 else []
    if divided:
        return f"{both}, and {', and '.join(parts)}" if parts else f"{both}, a GPU each"
    return ", and ".join(parts) or "one GPU"
