"""What this version cannot do yet."""

from collections.abc import Iterator

from presets.facts import Facts
from presets.job import Job
from presets.rules.registry import Found, rule


@rule("one-gpu", "error")
def one_gpu(job: Job, facts: Facts) -> Iterator[Found]:
    """A job names one GPU: several come with a later version."""
    if len(set(job.job.gpus)) > 1:
        yield Found("job.gpus", f"this version trains a job on one GPU, and {len(set(job.job.gpus))} are named", set={"job.gpus": job.job.gpus[:1]})
