"""Rules about the two experts: which are trained, how they take turns, where they divide."""

from collections.abc import Iterator

from presets.facts import Facts
from presets.job import Job
from presets.rules.registry import Found, rule


def both(job: Job) -> bool:
    return job.multistage.high_noise and job.multistage.low_noise


@rule("stage-none", "error")
def stage_none(job: Job, facts: Facts) -> Iterator[Found]:
    """At least one expert is trained."""
    if not (job.multistage.high_noise or job.multistage.low_noise):
        yield Found("multistage.high_noise", "neither expert is selected, so nothing would be trained", set={"multistage.high_noise": True, "multistage.low_noise": True})


@rule("stage-kind", "warning")
def stage_kind(job: Job, facts: Facts) -> Iterator[Found]:
    """Motion trains the high-noise expert, a character the low-noise one."""
    if job.job.kind == "motion" and job.multistage.low_noise and not job.multistage.high_noise:
        yield Found("multistage.high_noise", "the high-noise expert decides motion and camera; without it the camera will hardly move", set={"multistage.high_noise": True})
    if job.job.kind == "character" and job.multistage.high_noise and not job.multistage.low_noise:
        yield Found("multistage.low_noise", "the low-noise expert decides faces and detail; without it the likeness stays weak", set={"multistage.low_noise": True})


@rule("switch-every-with-steps", "warning")
def switch_every_with_steps(job: Job, facts: Facts) -> Iterator[Found]:
    """Both experts have their turn before the run ends."""
    steps, every = job.training.steps, job.multistage.switch_every
    if both(job) and every >= steps > 1:
        message = f"the high-noise expert trains for the first {every} steps, and the run ends after {steps}: the low-noise LoRA would stay empty"
        yield Found("multistage.switch_every", message, set={"multistage.switch_every": max(1, min(10, steps // 4))})


@rule("boundary-out-of-range", "error")
def boundary_out_of_range(job: Job, facts: Facts) -> Iterator[Found]:
    """The expert boundary is "model" or a number between 0 and 1."""
    boundary = job.model.boundary
    if isinstance(boundary, float | int) and not 0 < boundary < 1:
        better = boundary / 1000 if 1 < boundary < 1000 else "model"
        yield Found("model.boundary", f"{boundary:g} is no noise level between 0 and 1, so one expert would have nothing to do", set={"model.boundary": better})
