"""Rules about memory, by the planner: whether a plan fits at all, and with how much room.

They reckon with all of the card's and the machine's memory, as a queued job will find it; `gpu-busy` reports others.
"""

from collections.abc import Iterator
from functools import lru_cache

import msgspec

from presets.errors import UserError
from presets.facts.facts import Facts, model_missing, used_gpus
from presets.facts.held_out import validates
from presets.job.fields import toml_text
from presets.job.schema import Job
from presets.machine.machine import WSL
from presets.machine.precisions import LEAST
from presets.planner.cards import gpu_hardware
from presets.planner.choose import Choice, DoesNotFit, WantedPrecision, choose, require_on
from presets.planner.coefficients import FITTED
from presets.planner.costs import Prediction, predict
from presets.planner.remedies import Remedy, remedies
from presets.planner.sizes import ExpertShape, disk_need
from presets.planner.workload import Hardware, Workload, measurements, shape_of, workload_of
from presets.rules.registry import Found, rule
from presets.runs.time_left import PlannedTime
from presets.text import human

TIGHT = 0.85  # of the card: a smallest plan above this has nowhere to go when memory runs out
LARGE_BUCKET = 1024
COSTLY = 0.1  # of the run's time, for measurements of the held-out loss
NAMED = 3  # remedies that one finding names


def _hardware(job: Job, facts: Facts) -> Hardware | None:
    """The job's first GPU with nothing else running; None where no plan is made."""
    gpus = used_gpus(job, facts)
    return (
        gpu_hardware(gpus[0], facts.machine, idle=True)
        if facts.machine is not None and gpus and not facts.tiny
        else None
    )


def hardware_of(job: Job, facts: Facts) -> Hardware | None:
    """What the rules reckon with: the job's first GPU here with nothing else running; None without one, and for a toy
    base."""
    return _hardware(job, facts)


def planned_on(job: Job, facts: Facts, hardware: Hardware) -> Choice | DoesNotFit:
    """The plan of a job on a machine, or why none fits. Raises UserError for a precision that the card does not run."""
    return _planned(
        workload_of(job, facts),
        hardware,
        shape_of(facts),
        job.model.low_vram,
        job.model.layer_offloading,
        job.model.cuda_graphs,
        job.quantization.transformer,
    )


def _outcome(job: Job, facts: Facts) -> Choice | DoesNotFit | None:
    hardware = _hardware(job, facts)
    if hardware is None or model_missing(facts) or _why_not(job.quantization.transformer, hardware) is not None:
        return None
    return planned_on(job, facts, hardware)


def prediction_of(job: Job, facts: Facts) -> Prediction | None:
    """What the plan is expected to take; None where none can be made."""
    outcome = _outcome(job, facts)
    return outcome.prediction if isinstance(outcome, Choice) else None


def planned_time(job: Job, facts: Facts) -> PlannedTime | None:
    """What the run is expected to take, for estimates while it waits and until it has measured itself; None where none
    can be made."""
    found = prediction_of(job, facts)
    if found is None:
        return None
    step = found.seconds.total
    return PlannedTime(
        step,
        max(0.0, found.total - step * job.training.steps),
        preview=found.preview,
        save=FITTED.save,
        validation=found.validation,
        disk=disk_need(job, shape_of(facts)).total,
    )


def _why_not(precision: WantedPrecision, hardware: Hardware) -> UserError | None:
    try:
        require_on(hardware, precision)
    except UserError as e:
        return e
    return None


@lru_cache(maxsize=64)
def _planned(
    work: Workload,
    hardware: Hardware,
    shape: ExpertShape,
    low_vram: "bool | str",
    layer_offloading: "bool | str",
    cuda_graphs: "bool | str",
    precision: WantedPrecision,
) -> Choice | DoesNotFit:
    try:
        return choose(
            work,
            hardware,
            shape,
            low_vram=low_vram,  # type: ignore[arg-type]
            layer_offloading=layer_offloading,  # type: ignore[arg-type]
            cuda_graphs=cuda_graphs,  # type: ignore[arg-type]
            precision=precision,
        )
    except DoesNotFit as e:
        return e


def _fix(e: DoesNotFit, found: list[Remedy]) -> str:
    """The remedies in order of worth, each with the need after it."""
    if not found:
        return e.fix
    words = [
        " and ".join(f"{path} = {toml_text(value)}" for path, value in r.set.items())
        + f" ({human(r.need_vram if e.short == 'vram' else r.need_ram)})"
        for r in found[:NAMED]
    ]
    return f"Set {', or '.join(words)}" + ("" if found[0].fits else "; more than one of these, or other hardware")


def _found(job: Job, facts: Facts, e: DoesNotFit, field: str) -> Found:
    hardware = _hardware(job, facts)
    assert hardware is not None
    found = remedies(job, facts, hardware, short=e.short)
    return Found(field, e.what, fix=_fix(e, found), set=found[0].set if found and found[0].fits else {})


@rule("precision-unsupported", "error")
def precision_unsupported(job: Job, facts: Facts) -> Iterator[Found]:
    """The GPU runs the transformer's precision: float8 begins with compute capability 8.9."""
    hardware = _hardware(job, facts)
    if hardware is None or hardware.capability < LEAST:  # that is what `gpu-old` says
        return
    why = _why_not(job.quantization.transformer, hardware)
    if why is not None:
        yield Found("quantization.transformer", why.what, set={"quantization.transformer": "auto"})


@rule("plan-does-not-fit", "error")
def plan_does_not_fit(job: Job, facts: Facts) -> Iterator[Found]:
    """Some plan fits into the GPU's memory: even streamed, the largest bucket and the previews need a working set."""
    outcome = _outcome(job, facts)
    if isinstance(outcome, DoesNotFit) and outcome.short == "vram":
        yield _found(job, facts, outcome, "job.gpus")


@rule("ram-too-small", "error")
def ram_too_small(job: Job, facts: Facts) -> Iterator[Found]:
    """The machine's RAM holds the frozen weights, and what waits for the backward pass."""
    outcome = _outcome(job, facts)
    if isinstance(outcome, DoesNotFit) and outcome.short == "ram":
        yield _found(job, facts, outcome, "model.path")


@rule("wsl-unlocked-memory", "advice")
def wsl_unlocked_memory(job: Job, facts: Facts) -> Iterator[Found]:
    """The system lets the frozen weights be page-locked for the GPU, as Linux itself does and WSL2 does not."""
    outcome, hardware = _outcome(job, facts), _hardware(job, facts)
    if not isinstance(outcome, Choice) or hardware is None or outcome.plan.pinned:
        return
    now, locked = (
        outcome.prediction,
        predict(msgspec.structs.replace(outcome.plan, pinned=True), workload_of(job, facts), hardware, shape_of(facts)),
    )
    slower = now.seconds.total / locked.seconds.total - 1
    want = now.ram_held["weights"] + now.ram_held["activations"]
    yield Found(
        "model.layer_offloading",
        f"{WSL}, and this plan could use {human(want)} of such memory: it is reckoned without, copies at"
        f" {FITTED.unlocked:g} of their rate and a step {100 * slower:.0f}% longer; the run tries how much it gets",
        fix="Nothing needs doing; it is faster on Linux itself, or with a smaller quantization, which copies less",
    )


@rule("bucket-1024-tight", "warning")
def bucket_1024_tight(job: Job, facts: Facts) -> Iterator[Found]:
    """The 1024 bucket leaves some room: memory peaks at the largest bucket."""
    outcome = _outcome(job, facts)
    if not isinstance(outcome, Choice):
        return
    hardware = _hardware(job, facts)
    assert hardware is not None
    need = outcome.ladder[0].need_vram
    largest = workload_of(job, facts).largest.bucket
    for i, panel in enumerate(job.datasets):
        if (
            max(panel.resolutions) >= LARGE_BUCKET
            and panel.num_frames > 1
            and need > TIGHT * hardware.vram_free
            and largest.height * largest.width > 768**2
        ):
            path, rest = f"datasets[{i}].resolutions", [r for r in panel.resolutions if r < LARGE_BUCKET]
            message = (
                f"with the {largest.width}x{largest.height} bucket of {largest.frames} frames even the smallest plan"
                f" needs {human(need)} of the {human(hardware.vram_free)} on {hardware.name}: little room is left when"
                " a program takes some"
            )
            yield Found(path, message, set={path: rest or [512]})


@rule("validation-costly", "advice")
def validation_costly(job: Job, facts: Facts) -> Iterator[Found]:
    """Measuring the held-out loss takes less than a tenth of the run."""
    found = prediction_of(job, facts) if validates(job) else None
    if found is None:
        return
    count, each, save, steps = measurements(job), found.validation, job.save.every, job.training.steps
    share = count * each / found.total
    if share <= COSTLY:
        return
    message = f"{count} measurements of the held-out loss take {share:.0%} of the run"
    most = COSTLY / (1 - COSTLY) * (found.total - count * each) / each
    every = next((every for every in range(save, steps + 1, save) if measurements(job, every) <= most), None)
    if every is not None:
        yield Found("validation.every", message, set={"validation.every": every})
    else:
        yield Found("validation.every", message, fix="Set fewer validation.bins, or hold fewer clips out")
