"""Rules about the two experts: which are trained, how they take turns, where they divide, which of their layers learn.

Whose turn a step is, presets.job.expert_schedule says; what a pattern of layers names, presets.job.lora_layers.
"""

from collections.abc import Iterator

from presets.errors import UserError
from presets.facts.facts import Facts
from presets.job.expert_schedule import EXPERTS, PANEL, high_part, panel_of, steps_of
from presets.job.lora_layers import MOST_LAYOUTS, lora_layers, read_pattern
from presets.job.schema import Job
from presets.planner.workload import shape_of
from presets.rules.registry import Found, rule


def both(job: Job) -> bool:
    return job.multistage.high_noise and job.multistage.low_noise


@rule("stage-none", "error")
def stage_none(job: Job, facts: Facts) -> Iterator[Found]:
    """At least one expert is trained."""
    if not (job.multistage.high_noise or job.multistage.low_noise):
        yield Found(
            "multistage.high_noise",
            "neither expert is selected, so nothing would be trained",
            set={"multistage.high_noise": True, "multistage.low_noise": True},
        )


@rule("stage-kind", "warning")
def stage_kind(job: Job, facts: Facts) -> Iterator[Found]:
    """Motion trains the high-noise expert, a character the low-noise one."""
    if job.job.kind == "motion" and job.multistage.low_noise and not job.multistage.high_noise:
        yield Found(
            "multistage.high_noise",
            "the high-noise expert decides motion and camera; without it the camera will hardly move",
            set={"multistage.high_noise": True},
        )
    if job.job.kind == "character" and job.multistage.high_noise and not job.multistage.low_noise:
        yield Found(
            "multistage.low_noise",
            "the low-noise expert decides faces and detail; without it the likeness stays weak",
            set={"multistage.low_noise": True},
        )


@rule("switch-every-with-steps", "warning")
def switch_every_with_steps(job: Job, facts: Facts) -> Iterator[Found]:
    """Both experts have their turn before the run ends."""
    steps, every = job.training.steps, job.multistage.switch_every
    if both(job) and every >= steps > 1:
        message = (
            f"the high-noise expert trains for the first {every} steps, and the run ends after {steps}: the low-noise"
            " LoRA would stay empty"
        )
        yield Found("multistage.switch_every", message, set={"multistage.switch_every": max(1, min(10, steps // 4))})


@rule("expert-settings-unused", "warning")
def expert_settings_unused(job: Job, facts: Facts) -> Iterator[Found]:
    """Values for one expert alone stand where that expert is trained, a share of the steps where both are."""
    for expert, panel in PANEL.items():
        trained, values = getattr(job.multistage, expert), panel_of(job, expert)
        unused = [name for name in ("lr", "rank") if getattr(values, name) is not None and not trained] + ["share"] * (
            values.share != 1 and not both(job)
        )
        if unused:
            paths = {f"multistage.{panel}.{name}": 1.0 if name == "share" else None for name in unused}
            off = next((e for e in PANEL if not getattr(job.multistage, e)), expert)
            message = (
                f"the {off.replace('_noise', '-noise')} expert is not trained, so {' and '.join(paths)} would change"
                " nothing"
            )
            yield Found(
                next(iter(paths)),
                message,
                fix=f"Leave {'it' if len(paths) == 1 else 'them'} out, or set multistage.{off} = true",
                set=paths,
            )


@rule("expert-share-extreme", "warning")
def expert_share_extreme(job: Job, facts: Facts) -> Iterator[Found]:
    """Each expert's share of the steps comes to at least one of its turns."""
    steps, every = job.training.steps, job.multistage.switch_every
    if not both(job) or every >= steps:  # switch-every-with-steps speaks of the latter
        return
    part, counts = high_part(job), steps_of(job)
    for expert, own in ((EXPERTS[0], part), (EXPERTS[1], 1 - part)):
        if own * steps < every:
            path = f"multistage.{PANEL[expert]}.share"
            message = (
                f"the {expert.replace('_noise', '-noise')} expert's share is {float(own * steps):.2g} of {steps} steps,"
                f" less than one turn of {every}: it gets {counts[expert]} steps"
            )
            values: dict[str, float] = {
                f"multistage.{panel}.share": 1.0 for e, panel in PANEL.items() if panel_of(job, e).share != 1
            }
            if steps < 2 * every:  # equal shares are too short for a turn each, too
                path, values = "multistage.switch_every", values | {"multistage.switch_every": steps // 2}
            yield Found(path, message, set=values)
            return


@rule("boundary-unusual", "warning")
def boundary_unusual(job: Job, facts: Facts) -> Iterator[Found]:
    """A boundary that the job sets is near those of Wan's models (0.875 and 0.9)."""
    boundary = job.model.boundary
    if isinstance(boundary, float | int) and 0 < boundary < 1 and not 0.7 <= boundary <= 0.97:
        message = (
            f"inference hands over from one expert to the other at about 0.9; with {boundary:g} each would train on"
            " noise levels that it never sees there"
        )
        yield Found("model.boundary", message, set={"model.boundary": "model"})


@rule("boundary-out-of-range", "error")
def boundary_out_of_range(job: Job, facts: Facts) -> Iterator[Found]:
    """The expert boundary is "model" or a number between 0 and 1."""
    boundary = job.model.boundary
    if isinstance(boundary, float | int) and not 0 < boundary < 1:
        better = boundary / 1000 if 1 < boundary < 1000 else "model"
        yield Found(
            "model.boundary",
            f"{boundary:g} is no noise level between 0 and 1, so one expert would have nothing to do",
            set={"model.boundary": better},
        )


def _patterns(job: Job) -> dict[str, list[str]]:
    """Every pattern of layers that the job has, by its field."""
    tables = {f"target.layers[{i}].match": [table.match] for i, table in enumerate(job.target.layers)}
    return {"target.include": job.target.include, "target.exclude": job.target.exclude} | tables


def _readable(job: Job, facts: Facts) -> bool:
    return not any(layers_unknown(job, facts))


@rule("layers-unknown", "error")
def layers_unknown(job: Job, facts: Facts) -> Iterator[Found]:
    """A pattern of layers names some that the model has."""
    for field, patterns in _patterns(job).items():
        for text in patterns:
            try:
                read_pattern(text, shape_of(facts).layers)
            except UserError as e:
                yield Found(field, e.what, fix=e.fix)


@rule("layers-none", "error")
def layers_none(job: Job, facts: Facts) -> Iterator[Found]:
    """Some layer is trained."""
    if _readable(job, facts) and not lora_layers(job, EXPERTS[0], shape_of(facts).layers):
        field = "target.exclude" if job.target.exclude else "target.include"
        yield Found(field, "no layer is left, so nothing would be trained", set={"target.exclude": []})


@rule("layers-unused", "warning")
def layers_unused(job: Job, facts: Facts) -> Iterator[Found]:
    """A table of layers has a rank or factor for layers that are trained."""
    if not _readable(job, facts):
        return
    blocks = shape_of(facts).layers
    trained = lora_layers(job, EXPERTS[0], blocks)
    for i, table in enumerate(job.target.layers):
        pattern = read_pattern(table.match, blocks)
        if table.rank is None and table.lr_factor is None:
            message = f"{table.match} has neither a rank nor a factor of its own, so its table changes nothing"
            yield Found(f"target.layers[{i}].match", message, fix="Give it a rank or lr_factor, or take the table out")
        elif trained and not any(pattern.fits(layer.block, layer.linear) for layer in trained):
            message = f"none of the layers that {table.match} names is trained, so its table changes nothing"
            yield Found(f"target.layers[{i}].match", message, fix="Take the table out, or include those layers")


@rule("layers-many-kinds", "error")
def layers_many_kinds(job: Job, facts: Facts) -> Iterator[Found]:
    """Blocks are of few kinds by the layers and ranks that they train: each kind is compiled by itself."""
    kinds = shape_of(facts).layouts(job)
    if kinds > MOST_LAYOUTS:
        message = (
            f"by the layers and ranks that they train there are {kinds} kinds of blocks, and each would be compiled by"
            f" itself; {MOST_LAYOUTS} is the most"
        )
        field = "target.layers" if job.target.layers else "target.include" if job.target.include else "target.exclude"
        yield Found(field, message, fix="Use fewer ranges of blocks, each with one rank")


@rule("layers-prodigy", "error")
def layers_prodigy(job: Job, facts: Facts) -> Iterator[Found]:
    """Layers learn at rates of their own with an optimizer that takes several: prodigy finds one for all."""
    factors = {
        f"target.layers[{i}].lr_factor": None
        for i, table in enumerate(job.target.layers)
        if table.lr_factor not in (None, 1)
    }
    if factors and job.training.optimizer == "prodigy":
        message = "prodigy finds one learning rate for all layers, and takes no factor"
        yield Found(next(iter(factors)), message, set=factors)
