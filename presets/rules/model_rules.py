"""Rules about the base model. What its files themselves say is found while reading them: see
presets.base.model_facts."""

from collections.abc import Iterator
from pathlib import Path

from presets.base.fetch_plan import RESERVE
from presets.disk import same_disk
from presets.facts.facts import Facts
from presets.job.schema import Job
from presets.planner.sizes import disk_need
from presets.planner.workload import shape_of
from presets.rules.registry import Found, rule
from presets.rules.run_folder_rules import held_bytes
from presets.text import human


@rule("model-not-local", "advice")
def model_not_local(job: Job, facts: Facts) -> Iterator[Found]:
    """Every part of the base model is on this machine already."""
    model, fetching = facts.model, facts.fetching
    # what cannot be had is an error, and nothing to wait for
    if model is None or model.local or (fetching is not None and fetching.problems and not fetching.fetches):
        return
    text = fetching.text if fetching is not None else ""
    message = f"not all of the base model is on this machine; to be fetched first: {text or ', '.join(model.absent)}"
    if fetching is not None and fetching.unknown:
        message += f"; how much {'else ' if text else ''}is not known, because {fetching.unknown}"
    yield Found(
        "model.path",
        message,
        fix="Let it download, or name folders that have it in model.path, model.vae and model.text_encoder",
    )


@rule("cache-too-small", "error")
def cache_too_small(job: Job, facts: Facts) -> Iterator[Found]:
    """The disk of the Hub's cache has room for what is to be fetched, and for the run when that goes to the same
    disk."""
    fetching = facts.fetching
    if fetching is None or not fetching.need:
        return
    shared = facts.machine is not None and same_disk(Path(fetching.cache), facts.out)
    run = max(0, disk_need(job, shape_of(facts)).total - held_bytes(job, facts)) if shared else 0
    short = fetching.need + RESERVE + run - fetching.free
    if short > 0:
        what = (
            f"{human(fetching.need)} are to be fetched into"
            f" {fetching.cache}{f', the run needs {human(run)} on the same disk' if run else ''}, and"
            f" {human(fetching.free)} are free there"
        )
        yield Found(
            "model.path",
            what,
            fix=(
                f"Free {human(short)}, move the Hub's cache to another disk (HF_HOME), or name folders that have the"
                " parts already"
            ),
        )


@rule("ara-unused", "warning")
def ara_unused(job: Job, facts: Facts) -> Iterator[Found]:
    """An accuracy recovery adapter comes with qint4+ara."""
    if job.quantization.ara and job.quantization.transformer != "qint4+ara":
        message = (
            f"the accuracy recovery adapter belongs to qint4+ara and is not used with {job.quantization.transformer}"
        )
        yield Found("quantization.ara", message, set={"quantization.ara": ""})
