"""Rules about the accelerator of previews."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from presets.errors import UserError
from presets.facts import Facts
from presets.job import Job
from presets.lorafile import ExpertName, block_shapes, misfit, read_lora
from presets.previews import low_guidance
from presets.rules.registry import Found, rule
from presets.text import sentences

FEW_STEPS, MANY_STEPS = 4, 8  # what such LoRAs are made for; beyond the latter nothing is gained
FILES: tuple[tuple[Literal["accelerator", "accelerator_low"], ExpertName], ...] = (("accelerator", "high_noise"), ("accelerator_low", "low_noise"))


def _accelerated(job: Job) -> bool:
    return bool(job.sample.prompts and (job.sample.accelerator or job.sample.accelerator_low))


@rule("accelerator-unreadable", "error")
def accelerator_unreadable(job: Job, facts: Facts) -> Iterator[Found]:
    """An accelerator is a whole LoRA file for Wan 2.2 14B, and everything in it can be applied."""
    if not _accelerated(job):
        return
    for name, expert in FILES:
        text = getattr(job.sample, name)
        if not text:
            continue
        path = facts.base / Path(text).expanduser()
        experts: list[ExpertName] = [expert] if name == "accelerator_low" or job.sample.accelerator_low else ["high_noise", "low_noise"]
        try:
            file = read_lora(path)
            for e in experts:
                changes, model = file.of(e), facts.model
                if not changes:
                    raise UserError(f"changes nothing in the {e.replace('_', ' ')} expert", where=str(path), fix="Give a file for this expert, or one for both")
                if model is not None and model.local and model.width and model.ffn and (problem := misfit(file, changes, block_shapes(model.width, model.ffn), model.num_layers)):
                    raise UserError(problem, where=str(path), fix="Give a LoRA file for this base model")
        except UserError as e:
            yield Found(f"sample.{name}", f"the accelerator cannot be used ({e.where}: {e.what})", fix=f"{sentences(e.fix).rstrip('.')}, or leave sample.{name} empty")


@rule("accelerator-expert", "warning")
def accelerator_expert(job: Job, facts: Facts) -> Iterator[Found]:
    """Each expert has the accelerator that was made for it, where a file's name says so."""
    if not _accelerated(job):
        return
    high, low = (job.sample.accelerator, job.sample.accelerator_low)
    if not high:
        yield Found("sample.accelerator", "only the low-noise expert is accelerated, and the other cannot do with so few steps", fix="Give sample.accelerator as well")
    if high and not low and (named := _named(high)):
        message = f"{Path(high).name} is for the {named} noise expert by its name, and both would use it"
        yield Found("sample.accelerator_low" if named == "high" else "sample.accelerator", message, fix="Give each expert its own file: sample.accelerator for high noise, sample.accelerator_low for low noise")
    elif high and low and _named(high) == "low" and _named(low) == "high":
        yield Found("sample.accelerator", "by their names the two files are swapped", set={"sample.accelerator": low, "sample.accelerator_low": high})


def _named(path: str) -> str:
    """`high` or `low` when the file's name says one of them, else ""."""
    found = set(re.findall(r"(?<![a-z])(high|low)(?![a-z])", Path(path).stem.lower()))
    return found.pop() if len(found) == 1 else ""


@rule("accelerator-guidance", "advice")
def accelerator_guidance(job: Job, facts: Facts) -> Iterator[Found]:
    """With an accelerator there is no guidance: it is learnt into such LoRAs, and asking for it again burns the picture."""
    if _accelerated(job) and max(job.sample.guidance, low_guidance(job.sample)) > 1:
        path = "sample.guidance" if job.sample.guidance > 1 else "sample.guidance_low"
        change = {"sample.guidance": 1.0} | ({"sample.guidance_low": 1.0} if job.sample.guidance_low is not None else {})
        yield Found(path, "an accelerator has guidance learnt into it; more of it takes twice the time and burns the picture", set=change)


@rule("accelerator-steps", "advice")
def accelerator_steps(job: Job, facts: Facts) -> Iterator[Found]:
    """With an accelerator, previews take few steps."""
    if _accelerated(job) and job.sample.steps > MANY_STEPS:
        yield Found("sample.steps", f"an accelerator is made for about {FEW_STEPS} steps: {job.sample.steps} take longer and look no better", set={"sample.steps": FEW_STEPS})
