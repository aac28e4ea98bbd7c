"""Rules about memory, by the planner: whether a plan fits at all, and with how much room.

They reckon with all of the card's and the machine's memory, as a queued job will find it; `gpu-busy` reports others.
"""

from collections.abc import Iterator
from functools import lru_cache

from presets.errors import UserError
from presets.facts.facts import Facts, model_missing, used_gpus
from presets.job.fields import toml_text
from presets.job.schema import Job
from presets.machine.precisions import LEAST, require
from presets.planner.cards import gpu_hardware
from presets.planner.choose import Choice, DoesNotFit, WantedPrecision, choose
from presets.planner.remedies import Remedy, remedies
from presets.planner.sizes import ExpertShape
from presets.planner.workload import Hardware, Workload, shape_of, workload_of
from presets.rules.registry import Found, rule
from presets.text import human

TIGHT = 0.85  # of the card: a smallest plan above this has nowhere to go when memory runs out
LARGE_BUCKET = 1024
NAMED = 3  # remedies that one finding names


def _hardware(job: Job, facts: Facts) -> Hardware | None:
    """The job's first GPU with nothing else running; None where no plan is made."""
    gpus = used_gpus(job, facts)
    return (
        gpu_hardware(gpus[0], facts.machine, idle=True)
        if facts.machine is not None and gpus and not facts.tiny
        else None
    )


def _outcome(job: Job, facts: Facts) -> Choice | DoesNotFit | None:
    hardware = _hardware(job, facts)
    if hardware is None or model_missing(facts) or _why_not(job.quantization.transformer, hardware) is not None:
        return None
    return _planned(
        workload_of(job, facts),
        hardware,
        shape_of(facts),
        job.model.low_vram,
        job.model.layer_offloading,
        job.quantization.transformer,
    )


def _why_not(precision: str, hardware: Hardware) -> UserError | None:
    try:
        require(
            precision, card=hardware.name, capability=hardware.capability, multiplies_float8=hardware.computes_float8
        )
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
    precision: WantedPrecision,
) -> Choice | DoesNotFit:
    try:
        return choose(
            work,
            hardware,
            shape,
            low_vram=low_vram,  # type: ignore[arg-type]
            layer_offloading=layer_offloading,  # type: ignore[arg-type]
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
