"""Which expert has its turn at which optimizer step."""

from engine.base import Expert, trained_experts
from presets.job import Job


def expert_at(job: Job, step: int) -> Expert:
    """Whose turn optimizer step `step` (from 0) is: switch_every steps each, high noise first."""
    experts = trained_experts(job)
    return experts[step // job.multistage.switch_every % len(experts)]
