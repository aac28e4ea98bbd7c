"""What a job will do, take and cost, for whoever decides: the wizard, `wanlora new` and `wanlora check`.

The plan, and what it takes, is presets.planner's, chosen as the rules choose it: with all of the card's memory, as a
queued job will find it. The arithmetic of bytes is `presets.planner.sizes`.
"""

import math
import time
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from daemon.settings import CostSettings
from daemon.wire.list_messages import PlannedTime
from presets.errors import UserError
from presets.facts.facts import Facts, masked, paired
from presets.facts.held_out import validates
from presets.facts.visits import Visits, texts_of, times, unseen_text, visits_of
from presets.job.expert_schedule import Expert, steps_of, trained_experts
from presets.job.preview_settings import preview_sets
from presets.job.schema import Job
from presets.planner.cards import card_hardware, find_card
from presets.planner.choose import Choice, DoesNotFit
from presets.planner.costs import predict
from presets.planner.plan import Plan
from presets.planner.several_gpus import two_at_once
from presets.planner.sizes import GIB, ExpertShape, disk_need
from presets.planner.workload import Hardware, boundary_of, measurements, shape_of, workload_of
from presets.rules.plan_rules import hardware_of, planned_on
from presets.text import human
from wanlora_tui.output.formatting import count, duration, expert_text, price, seconds_each
from wanlora_tui.output.queue_words import clock_time

# What a job is reckoned on where there is no GPU: it may be trained elsewhere.
STAND_IN, STAND_IN_RAM = "RTX 4090", 64 * GIB


class Forecast(Struct, frozen=True, kw_only=True):
    """What a job takes. Bytes and seconds; 0 where nothing is known."""

    card: str = ""  # what it is reckoned on; "" where there is no plan at all
    here: bool = False  # that card is this machine's own
    why: str = ""  # why there is no plan, or why it is another machine's card
    misfit: str = ""  # why no plan fits
    finding: str = ""  # the code of the finding about that
    vram: int = 0  # the whole run's peak, the CUDA context included
    vram_total: int = 0
    ram: int = 0
    ram_total: int = 0
    step: float = 0.0  # the mean one
    by_expert: dict[Expert, float] = msgspec.field(default_factory=dict)
    steps: int = 0
    total: float = 0.0  # of the whole run: previews, checkpoints and compilation included
    held_out: float = 0.0  # of that, for measurements of the held-out loss
    means: dict[str, str] = msgspec.field(default_factory=dict)  # field left to us -> what it comes to
    disk: int = 0
    disk_free: int = 0
    seen: list[Visits] = msgspec.field(default_factory=list)

    @property
    def planned(self) -> PlannedTime | None:
        """What the daemon is told; None where this machine gave no plan."""
        return (
            PlannedTime(self.step, max(0.0, self.total - self.step * self.steps)) if self.here and self.total else None
        )


def reckon(job: Job, facts: Facts) -> Forecast:
    """What the job takes on this machine's GPU; without one, on a card that many have. The same plan as of `wanlora
    plan`, for a machine on which nothing else runs."""
    shape = shape_of(facts)
    known = Forecast(
        steps=job.training.steps,
        disk=disk_need(job, shape).total,
        disk_free=facts.machine.disk_free if facts.machine else 0,
        seen=visits_of(job, facts.datasets),
        means=_of_facts(job, facts),
    )
    if facts.tiny:
        return msgspec.structs.replace(known, why="a toy base: any machine trains it, and no plan is made")
    own = hardware_of(job, facts)
    hardware, why = (own, "") if own is not None else _stand_in(job, facts)
    known = msgspec.structs.replace(
        known,
        card=hardware.name.removeprefix("NVIDIA ").removeprefix("GeForce "),
        here=own is not None,
        why=why,
        vram_total=hardware.vram_total,
        ram_total=hardware.ram_total,
    )
    try:
        choice = planned_on(job, facts, hardware)
    except UserError as e:
        return msgspec.structs.replace(known, misfit=e.what, finding="precision-unsupported")
    if isinstance(choice, DoesNotFit):
        return msgspec.structs.replace(
            known,
            misfit=choice.what,
            finding="plan-does-not-fit" if choice.short == "vram" else "ram-too-small",
            vram=choice.smallest.need_vram,
            ram=choice.smallest.ram,
        )
    found = choice.prediction
    if own is not None and (two := two_at_once(job, facts, own)):
        gpus, shared = two
        text = f"{gpus} would take {duration(shared.total)}: GPU {gpus[1]} is free too, and the experts train apart"
        known = msgspec.structs.replace(known, means=known.means | {"job.gpus": text})
    return msgspec.structs.replace(
        known,
        vram=found.need_vram,
        ram=found.ram,
        step=found.seconds.total,
        by_expert={e: _of_expert(e, job, facts, choice.plan, hardware) for e in trained_experts(job)},
        total=found.total,
        held_out=measurements(job) * found.validation,
        means=known.means | _of_plan(job, choice, shape),
    )


def _stand_in(job: Job, facts: Facts) -> tuple[Hardware, str]:
    """A common card with a common machine around it, and why it is taken."""
    ram = max(STAND_IN_RAM, facts.machine.ram_total if facts.machine else 0)
    machine = facts.machine
    if machine is None:
        why = "the machine is not known"
    elif machine.gpus:
        broken = next((g.error for g in machine.gpus if g.index in job.job.gpus and g.error), "")
        why = broken or f"there is no GPU {', '.join(map(str, job.job.gpus))} here"
    else:
        why = "no GPU here" + (f": {machine.gpu_problem.partition(':')[0]}" if machine.gpu_problem else "")
    return card_hardware(find_card(STAND_IN), ram=ram), why


def _of_expert(expert: Expert, job: Job, facts: Facts, plan: Plan, hardware: Hardware) -> float:
    """Seconds of a step in which this expert learns."""
    shape = shape_of(facts)
    blocks = [layer.block for layer in shape.lora_layers(job, expert)]
    work = msgspec.structs.replace(
        workload_of(job, facts), ranks=(shape.mean_rank(job, expert),), lowest=min(blocks, default=0)
    )
    return predict(plan, work, hardware, shape).seconds.total


def _of_facts(job: Job, facts: Facts) -> dict[str, str]:
    """What follows from model and clips."""
    means = {"model.boundary": f"{boundary_of(job, facts):g}"} if job.model.boundary == "model" else {}
    for i, panel, found in paired(job, facts):
        if panel.mask == "auto":
            means[f"datasets[{i}].mask"] = f"{sum(c.mask is not None for c in found.clips)} masked"
    return means


def _of_plan(job: Job, choice: Choice, shape: ExpertShape) -> dict[str, str]:
    """What the plan makes of the fields that are left to it."""
    plan = choice.plan
    precision = {"none": "bf16"}.get(plan.precision, plan.precision)
    resident = (
        f"{'all' if plan.resident >= shape.layers else plan.resident} blocks resident"
        if plan.resident
        else "all blocks streamed"
    )
    means = {}
    if job.quantization.transformer == "auto":
        means["quantization.transformer"] = f"{precision}, {resident}"
    if job.model.layer_offloading == "auto":
        means["model.layer_offloading"] = resident
    if job.model.low_vram == "auto":
        means["model.low_vram"] = f"{plan.chunk} tokens at a time" if plan.chunk else "off"
    if job.model.cuda_graphs == "auto":
        means["model.cuda_graphs"] = f"up to {plan.graphed} tokens" if plan.graphed else "off"
    return means


# In words


def _changed(old: str, new: str) -> str:
    return f"{old} -> {new}" if old and old != new else new


def _values(found: Forecast, cost: CostSettings) -> dict[str, str]:
    """The numbers of the summary that may change under a user's hands."""
    values = {"disk": human(found.disk), "seen": ", ".join(dict.fromkeys(times(v.each) for v in found.seen))}
    if found.total:
        each = {seconds_each(s) for s in found.by_expert.values()}
        step = (
            seconds_each(found.step)
            if len(each) < 2
            else " and ".join(f"{seconds_each(s)} ({expert_text(e).split()[0]})" for e, s in found.by_expert.items())
        )
        values |= {"vram": human(found.vram), "step": step, "time": duration(found.total)}
        values["price"] = price(found.total, cost.rate, cost.currency)
    return values


def summary(found: Forecast, cost: CostSettings, *, before: Forecast | None = None, now: float | None = None) -> str:
    """All that counts in one paragraph; of what differs from `before`, both: `1.12 -> 0.94 s/step`. Time and price come
    first, since a small terminal shows a line of it, and what explains them last."""
    values, old = _values(found, cost), _values(before, cost) if before is not None else {}
    shown = {name: _changed(old.get(name, ""), value) for name, value in values.items()}
    return " · ".join([*_cost(found, shown, now), *_rest(found, shown), *_why(found)])


def cost_line(found: Forecast, cost: CostSettings, *, now: float | None = None) -> str:
    """Memory, time and price: what `forecast` does not say."""
    return " · ".join([*_cost(found, _values(found, cost), now), *_why(found)])


def _cost(found: Forecast, shown: dict[str, str], now: float | None) -> Iterator[str]:
    if found.misfit:
        yield f"✗ {found.finding}: {found.misfit}"
    elif found.total:
        card = found.card if found.here else f"on an {found.card}"
        now = time.time() if now is None else now
        yield f"{shown['step']} s/step"
        yield f"{shown['time']} in all"
        if shown["price"]:
            yield shown["price"]
        yield f"done at {clock_time(now + found.total, now)}"
        yield f"{card}: {shown['vram']} of {human(found.vram_total)}"
        if found.held_out:
            yield f"{found.held_out / found.total:.1%} of the time for the held-out loss"


def _why(found: Forecast) -> Iterator[str]:
    if found.why:
        yield found.why


def _rest(found: Forecast, shown: dict[str, str]) -> Iterator[str]:
    yield f"disk {shown['disk']}" + (f" of {human(found.disk_free)}" if found.disk_free else "")
    if shown["seen"]:
        never = unseen_text(found.seen)
        yield f"each clip seen {shown['seen']}{f' ({never})' if never else ''}"


def forecast(job: Job, facts: Facts) -> list[str]:
    """Steps, checkpoints, previews and disk, one line each."""
    seen = texts_of(visits_of(job, facts.datasets)) or ["no clips"]
    if under := masked(job, facts):
        seen.append(f"{under} masked")
    saves = math.ceil(job.training.steps / job.save.every)
    steps = steps_of(job)
    per_expert = f", {' and '.join(f'{n} for {expert_text(e)}' for e, n in steps.items())}" if len(steps) > 1 else ""
    sets = preview_sets(job)
    previews = count(sets * len(job.sample.prompts), "preview") if sets else "no previews (no prompts)"
    held = f"held-out loss measured {count(measurements(job), 'time')} · " if validates(job) else ""
    need = disk_need(job, shape_of(facts))
    free = f" of {human(facts.machine.disk_free)} free" if facts.machine else ""
    return [
        (f"{count(job.training.steps, 'step')}{per_expert} · {'; '.join(seen)}"),
        (
            f"{count(saves, 'checkpoint')} (newest {min(saves, job.save.keep)} kept) · {previews} · {held}disk"
            f" {human(need.total)}{free}"
        ),
    ]


def for_programs(found: Forecast, cost: CostSettings) -> dict[str, object]:
    """The numbers as `--json` has them."""
    return {
        "card": found.card,
        "here": found.here,
        "fits": not found.misfit if found.card else None,
        "why": found.why or found.misfit,
        "vram_bytes": found.vram,
        "vram_total_bytes": found.vram_total,
        "ram_bytes": found.ram,
        "seconds_per_step": found.step,
        "seconds_per_step_by_expert": found.by_expert,
        "seconds": found.total,
        "seconds_held_out": found.held_out,
        "disk_bytes": found.disk,
        "disk_free_bytes": found.disk_free,
        "means": found.means,
        "clips": [
            {"dataset": v.dataset, "clips": v.clips, "seen_each": v.each, "never_seen": round(v.unseen * v.clips)}
            for v in found.seen
        ],
        "price": round(found.total / 3600 * cost.rate, 2) if cost.rate else None,
        "currency": cost.currency if cost.rate else None,
    }
