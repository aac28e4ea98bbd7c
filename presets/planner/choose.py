"""Choosing: the fastest plan that fits in the memory of a machine, with the rungs above and below it.

Which plans there are is presets.planner.candidates's; what each costs, presets.planner.costs's.
"""

import math
from functools import partial
from typing import Literal

from msgspec import Struct

from presets.errors import UserError
from presets.facts.facts import Facts
from presets.job.schema import Job
from presets.machine.precisions import require
from presets.planner import candidates
from presets.planner.candidates import (
    LEAST_SAVED,
    ROOMY,
    ROOMY_VRAM,
    RUNG,
    Candidate,
    Limits,
    as_fast,
    frontier,
    limits_of,
    priced,
    rung,
    with_activations_on_device,
    with_gelu_kept,
    with_hidden_saved,
    with_vae_frames,
    worth_graphs,
)
from presets.planner.cards import DRIVER_BYTES
from presets.planner.coefficients import FITTED
from presets.planner.costs import Costs, Prediction
from presets.planner.plan import Plan, Precision
from presets.planner.sizes import GIB, ExpertShape
from presets.planner.workload import Hardware, Workload, shape_of, workload_of
from presets.text import human

WantedPrecision = Literal["auto", "none", "float8", "int8", "qfloat8", "qint8", "qint4", "qint4+ara"]
NOT_SLOWER = 1.03  # bf16 is preferred to 8 bits as long as it costs no more time than this, and is within ROOMY
RAM_WORTH = GIB  # a plan within ROOMY_VRAM is taken for one no rung faster when it saves this much host memory
WORDS = {"none": "bf16"}
WHY: dict[Precision, str] = {  # what `auto` tries first
    "int8": "this card multiplies fastest in 8-bit integers",
    "float8": "this card multiplies in 8 bits",
    "qint8": "bf16 would be slower here or not fit",
}


class Choice(Struct, frozen=True, kw_only=True):
    """What was chosen, why its precision, and what more or less memory would mean."""

    plan: Plan
    prediction: Prediction
    why: str  # of the precision
    up: Candidate | None  # the next faster rung, which does not fit here; None at the top
    down: Candidate | None  # the next smaller rung, which is no faster; None at the bottom
    ladder: list[Candidate]  # all rungs of this precision that host memory allows, by rising memory
    # the best plan with blocks of short clips as CUDA graphs and the best without, where the first is clearly faster:
    # `plan` is one of the two
    graphs: Candidate | None = None
    launched: Candidate | None = None


class DoesNotFit(UserError):
    """No plan fits. `smallest` is the one that needs least VRAM of those considered, `short` what it lacks."""

    def __init__(self, what: str, *, fix: str, smallest: Prediction, plan: Plan, short: Literal["vram", "ram"]) -> None:
        self.smallest, self.plan, self.short = smallest, plan, short
        super().__init__(what, where=WHERE[short], fix=fix)


WHERE = {"vram": "job.gpus", "ram": "quantization.transformer"}


def require_on(hardware: Hardware, precision: WantedPrecision) -> None:
    """Raises UserError, with the fix, for a precision that the card does not run."""
    require(
        precision,
        card=hardware.name,
        capability=hardware.capability,
        multiplies_float8=hardware.computes_float8,
        multiplies_int8=hardware.computes_int8,
    )


def choose(
    work: Workload,
    hardware: Hardware,
    shape: ExpertShape | None = None,
    *,
    low_vram: Literal["auto"] | bool = "auto",
    layer_offloading: Literal["auto"] | bool = "auto",
    cuda_graphs: Literal["auto"] | bool = "auto",
    precision: WantedPrecision = "auto",
    compiled: bool = True,
) -> Choice:
    """The fastest plan that fits. Raises DoesNotFit with the numbers, UserError for a precision that the card does not
    run.

    `auto` takes int8 where the card multiplies clearly fastest in it, else float8 where it has that: the fastest, half
    the host memory of bf16. Other cards gain no speed from 8 bits, so they keep bf16 where it fits into three quarters
    of the host's memory and its copies cost no time, else qint8. Where 8 bits do not fit either, qint4.
    """
    require_on(hardware, precision)
    costs = Costs(work, hardware, shape)
    limits = limits_of(low_vram, layer_offloading)
    chosen = partial(_choice, costs, limits=limits, compiled=compiled, graphs=cuda_graphs is not False)
    if precision != "auto":
        wanted: Precision = "qint4" if precision == "qint4+ara" else precision
        return chosen(wanted, why="as the job asks")
    first: Precision = "int8" if hardware.gains_by_int8 else "float8" if hardware.computes_float8 else "qint8"
    best: Choice | None = None
    refusal: DoesNotFit | None = None
    try:
        best = chosen(first, why=WHY[first])
    except DoesNotFit as e:
        refusal = e
    if first == "qint8":
        try:
            exact = chosen("none", why="this card multiplies no faster in 8 bits, and bf16 fits")
            quick = best is None or exact.prediction.seconds.total <= NOT_SLOWER * best.prediction.seconds.total
            if quick and exact.prediction.ram <= ROOMY * hardware.ram_total:
                return exact
        except DoesNotFit:
            pass  # 8 bits do, or are about to be refused with their smaller numbers
    if best is not None:
        return best
    assert refusal is not None
    try:
        return chosen("qint4", why=f"{first} does not fit")
    except DoesNotFit as smaller:
        raise (
            smaller
            if smaller.short == refusal.short == "ram" or smaller.smallest.need_vram < refusal.smallest.need_vram
            else refusal
        ) from None


def choose_for(job: Job, facts: Facts, hardware: Hardware) -> Choice:
    """The plan of a job, by its own panels. Raises DoesNotFit, and UserError as `choose`."""
    return choose_work(workload_of(job, facts), job, facts, hardware)


def choose_work(work: Workload, job: Job, facts: Facts, hardware: Hardware) -> Choice:
    """The same for work that is not just the job's."""
    return choose(
        work,
        hardware,
        shape_of(facts),
        low_vram=job.model.low_vram,
        layer_offloading=job.model.layer_offloading,
        cuda_graphs=job.model.cuda_graphs,
        precision=job.quantization.transformer,
    )


def _choice(costs: Costs, precision: Precision, *, why: str, limits: Limits, compiled: bool, graphs: bool) -> Choice:
    """Of one precision; `graphs`: take CUDA graphs where they are clearly faster."""
    hardware, margin = costs.hardware, FITTED.ram_margin
    everything = priced(costs, precision, limits, compiled=compiled)
    in_ram = [r for r in everything if r.ram + margin <= hardware.ram_free]
    if not in_ram:
        raise _too_little_ram(costs, min(everything, key=lambda r: (r.ram, r.need_vram)))
    launched = _fastest(costs, in_ram, limits)
    if launched is None:
        within = [r for r in everything if r.need_vram <= hardware.vram_free]
        if within:  # what saves VRAM takes RAM, and there is too little of it
            raise _too_little_ram(costs, min(within, key=lambda r: (r.ram, r.need_vram)))
        raise _too_little_vram(costs, min(everything, key=lambda r: (r.need_vram, r.seconds)), limits)
    recorded: Candidate | None = None
    if compiled and (rows := worth_graphs(costs, precision)):
        more = [
            r
            for r in priced(costs, precision, limits, compiled=compiled, graphed=rows)
            if r.ram + margin <= hardware.ram_free
        ]
        recorded = _fastest(costs, more, limits)
        if recorded and recorded.seconds * candidates.GRAPHS_WORTH > launched.seconds:
            recorded = None
        if recorded and graphs:
            in_ram += more
    chosen = recorded if recorded and graphs else launched
    if not limits.host_activations:
        chosen = rung(costs, with_hidden_saved(costs, chosen.plan))
    chosen = rung(costs, with_gelu_kept(costs, chosen.plan))
    ladder = frontier(in_ram)
    up = next((r for r in ladder if r.need_vram > hardware.vram_free and r.seconds * RUNG <= chosen.seconds), None)
    down = next(
        (r for r in reversed(ladder) if r.need_vram <= chosen.need_vram - LEAST_SAVED and r.seconds >= chosen.seconds),
        None,
    )
    plan = with_vae_frames(costs, chosen.plan)
    return Choice(
        plan=plan,
        prediction=costs.predict(plan),
        why=why,
        up=up,
        down=down,
        ladder=ladder,
        graphs=recorded,
        launched=launched if recorded else None,
    )


def _fastest(costs: Costs, rungs: list[Candidate], limits: Limits) -> Candidate | None:
    """The one to take of those that fit the card; None where none do."""
    fitting = [r for r in rungs if r.need_vram <= costs.hardware.vram_free]
    if not fitting:
        return None
    quick = min(as_fast(fitting), key=lambda r: (r.need_vram, r.ram, r.seconds))
    return _sparing_ram(costs, fitting, quick, limits)


def _sparing_ram(costs: Costs, fitting: list[Candidate], chosen: Candidate, limits: Limits) -> Candidate:
    """The plan that takes least host memory of those that are sure to fit and less than a rung slower than the fastest,
    where it takes clearly less than `chosen`. Times this close are equal within the model's error, and the host's
    memory is what others may want; the card's is the run's own. A host activations stays on the device as far as there
    is room."""
    close, sure = RUNG * min(r.seconds for r in fitting), ROOMY_VRAM * costs.hardware.vram_free
    roomy = [r for r in fitting if r.seconds <= close and r.need_vram <= sure]
    if not limits.host_activations:
        roomy = [
            rung(costs, with_activations_on_device(costs, r.plan, sure)) if r.plan.activations == "host" else r
            for r in roomy
        ]
    sparing = [r for r in roomy if r.ram <= chosen.ram - RAM_WORTH]
    if not sparing:
        return chosen
    least = min(r.ram for r in sparing)
    return min(as_fast([r for r in sparing if r.ram == least]), key=lambda r: (r.need_vram, r.seconds))


def _too_little_ram(costs: Costs, least: Candidate) -> DoesNotFit:
    found, hardware = costs.predict(least.plan), costs.hardware
    held = hardware.ram_total - hardware.ram_free
    precision, need = least.plan.precision, found.ram + FITTED.ram_margin
    parts = [
        f"{human(found.ram_held['weights'])} for the frozen weights of {costs.work.needed}"
        f" expert{'s' if costs.work.needed > 1 else ''}"
    ]
    parts += [
        f"{human(found.ram_held[held])} for {word}"
        for held, word in (("activations", "activations"), ("accelerator", "the previews' accelerator"))
        if found.ram_held[held]
    ]
    what = (
        f"{WORDS.get(precision, precision)} needs {human(need)} of RAM at the least ({', '.join(parts)}), and"
        f" {human(hardware.ram_free)} of {human(hardware.ram_total)} are free"
    )
    smaller = "" if precision == "qint4" else ", choose a smaller precision"
    if need <= hardware.ram_total and held:
        fix = f"End other programs on this machine{smaller}, or use one with more RAM"
    else:
        fix = (
            f"Train one expert without previews{smaller}, or use a machine with {math.ceil(need / GIB)} GiB of RAM or"
            " more"
        )
    return DoesNotFit(what, fix=fix, smallest=found, plan=least.plan, short="ram")


def _too_little_vram(costs: Costs, least: Candidate, limits: Limits) -> DoesNotFit:
    found, hardware = costs.predict(least.plan), costs.hardware
    total = f" of {human(hardware.vram_total)}" if hardware.vram_free < 0.95 * hardware.vram_total else ""
    rule = ""
    if limits.resident == "all":
        rule = " with every block resident (layer offloading off)"
    elif limits.chunked is False:
        rule = " without chunks (Low VRAM off)"
    what = (
        f"{hardware.name} has {human(hardware.vram_free)}{total} of VRAM free, and the smallest plan{rule} needs"
        f" {human(found.need_vram)}, most of all {TIGHTEST[found.tightest]}"
    )
    if limits.resident == "all":
        fix = 'Set model.layer_offloading = "auto"'
    elif limits.chunked is False:
        fix = 'Set model.low_vram = "auto"'
    elif found.tightest == "text" and costs.work.text_precision != "none":
        fix = f"Use a card with {math.ceil((found.need_vram + DRIVER_BYTES) / GIB)} GiB or more"
    else:
        fix = FIX[found.tightest]
    return DoesNotFit(what, fix=fix, smallest=found, plan=least.plan, short="vram")


TIGHTEST = {
    "step": "in the training step of the largest bucket",
    "vae": "while the VAE encodes the largest clip",
    "preview": "while a preview is made",
    "text": "while the text encoder works",
}
FIX = {
    "step": "Fewer frames, a smaller resolution or an 8-bit optimizer take less",
    "vae": "Fewer frames or a smaller resolution take less",
    "preview": "Smaller previews (sample.width, sample.height) take less",
    "text": 'Set quantization.text_encoder = "float8"',
}
