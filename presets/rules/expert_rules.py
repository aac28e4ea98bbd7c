"""Rules about the two experts: which are trained, how they take turns, where they divide.

Whose turn a step is, presets.job.expert_schedule says.
"""

from collections.abc import Iterator

from presets.facts.facts import Facts
from presets.job.expert_schedule import EXPERTS, PANEL, high_part, panel_of, steps_of
from presets.job.schema import Job
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
