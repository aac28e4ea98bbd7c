"""What a job will do and write, in a few lines for the review. The arithmetic of bytes is `presets.planner.sizes`."""

import math

from presets.clips.clip_facts import DatasetFacts
from presets.facts.facts import Facts
from presets.job.expert_schedule import steps_of
from presets.job.preview_settings import preview_sets
from presets.job.schema import Job
from presets.planner.sizes import disk_need
from presets.planner.workload import shape_of
from presets.text import human
from wanlora_tui.output.formatting import count, expert_text


def epochs(job: Job, datasets: list[DatasetFacts]) -> float:
    """How often each clip is seen, repeats counted; 0 when there is no clip."""
    clips = sum(len(found.clips) * panel.repeats for panel, found in zip(job.datasets, datasets, strict=True))
    return job.training.steps * job.training.batch_size * job.training.gradient_accumulation / clips if clips else 0.0


def forecast(job: Job, facts: Facts) -> list[str]:
    """Steps, checkpoints, previews and disk, one line each."""
    clips = sum(len(d.clips) for d in facts.datasets)
    saves = math.ceil(job.training.steps / job.save.every)
    steps = steps_of(job)
    per_expert = f", {' and '.join(f'{n} for {expert_text(e)}' for e, n in steps.items())}" if len(steps) > 1 else ""
    sets = preview_sets(job)
    previews = count(sets * len(job.sample.prompts), "preview") if sets else "no previews (no prompts)"
    need = disk_need(job, shape_of(facts))
    free = f" of {human(facts.machine.disk_free)} free" if facts.machine else ""
    return [
        (
            f"{count(job.training.steps, 'step')}{per_expert} · each of {count(clips, 'clip')} seen"
            f" {epochs(job, facts.datasets):.0f} times"
        ),
        (
            f"{count(saves, 'checkpoint')} (newest {min(saves, job.save.keep)} kept) · {previews} · disk"
            f" {human(need.total)}{free}"
        ),
    ]
