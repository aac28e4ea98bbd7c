"""Rules about the base model. What its files themselves say is found while reading them: see presets.model."""

from collections.abc import Iterator

from presets.facts import Facts
from presets.job import Job
from presets.rules.registry import Found, rule


@rule("model-not-local", "advice")
def model_not_local(job: Job, facts: Facts) -> Iterator[Found]:
    """The base model is on this machine already."""
    if facts.model is not None and not facts.model.local:
        message = f"{job.model.path} is not on this machine: it will be downloaded first, about 70 GB"
        yield Found("model.path", message, fix="Let it download, or give a folder that has it")


@rule("ara-unused", "warning")
def ara_unused(job: Job, facts: Facts) -> Iterator[Found]:
    """An accuracy recovery adapter comes with qint4+ara."""
    if job.quantization.ara and job.quantization.transformer != "qint4+ara":
        message = f"the accuracy recovery adapter belongs to qint4+ara and is not used with {job.quantization.transformer}"
        yield Found("quantization.ara", message, set={"quantization.ara": ""})
