"""Rules about the place the run writes to. Whether a run there may be resumed is presets.job.resume_check's."""

from collections.abc import Iterator

import msgspec

from presets.facts.facts import Facts
from presets.job.diff import breaking
from presets.job.resume_check import JOB_FILE
from presets.job.schema import Job
from presets.planner.sizes import disk_need
from presets.planner.workload import shape_of
from presets.rules.registry import Found, rule
from presets.text import human

ELSEWHERE = (
    "choose another place: with --out, or by putting the job file, beside which the runs lie, into another folder"
)


@rule("run-folder-other-job", "error")
def run_folder_other_job(job: Job, facts: Facts) -> Iterator[Found]:
    """The run folder is new, or holds this same job."""
    run = facts.run
    if run is not None and run.name == job.job.name and not run.accepted and run.resume.verdict != "fits":
        texts = [f"{c.field} = {c.old} there, {c.new} here" for c in breaking(run.resume.changes)]
        if run.resume.unreadable:
            texts = [f"its {JOB_FILE} cannot be read: {run.resume.unreadable}"]
        shown = "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")
        yield Found(
            "job.name",
            f"{run.path} already holds another job ({shown})",
            fix=f'Set job.name = "{run.free_name}", or {ELSEWHERE}',
            set={"job.name": run.free_name},
        )


@rule("out-not-writable", "error")
def out_not_writable(job: Job, facts: Facts) -> Iterator[Found]:
    """The run folder can be written to."""
    if facts.run is not None and facts.run.problem:
        yield Found(
            "job.name",
            f"{facts.run.path} cannot be written: {facts.run.problem}",
            fix=ELSEWHERE[0].upper() + ELSEWHERE[1:],
        )


def held_bytes(job: Job, facts: Facts) -> int:
    """Bytes that the run folder holds already."""
    return facts.run.size if facts.run is not None and facts.run.name == job.job.name else 0


@rule("keep-few", "advice")
def keep_few(job: Job, facts: Facts) -> Iterator[Found]:
    """At least 4 checkpoints are kept, where the disk allows: the best is often not the last."""
    more = msgspec.structs.replace(job, save=msgspec.structs.replace(job.save, keep=4))
    room = facts.machine is None or disk_need(more, shape_of(facts)).total <= facts.machine.disk_free + held_bytes(
        job, facts
    )
    if room and job.save.keep < 4 and job.training.steps // job.save.every > job.save.keep:
        yield Found(
            "save.keep",
            f"only the newest {job.save.keep} checkpoints stay, and the best is often an earlier one",
            set={"save.keep": 4},
        )


@rule("disk-too-small", "error")
def disk_too_small(job: Job, facts: Facts) -> Iterator[Found]:
    """The disk has room for every checkpoint that is kept, one more being written, the LoRA files and the previews."""
    if facts.machine is None:
        return
    held = held_bytes(job, facts)
    need, free = disk_need(job, shape_of(facts)), facts.machine.disk_free
    if need.total <= free + held:
        return
    what = (
        f"the run needs {human(need.total - held)}{' more' if held else ''} (a checkpoint is {human(need.checkpoint)},"
        f" {job.save.keep} are kept), and {human(free)} are free at {facts.machine.disk_path}"
    )
    per_save = need.checkpoint + need.files // (min(job.save.keep, -(-job.training.steps // job.save.every)) + 1)
    affordable = int((free + held - need.samples) // per_save) - 1 if per_save else 0
    if affordable >= 2:
        yield Found(
            "save.keep",
            what,
            fix=f"Set save.keep = {affordable}, free some space, or {ELSEWHERE}",
            set={"save.keep": affordable},
        )
    else:
        yield Found("save.keep", what, fix=f"Free some space, or {ELSEWHERE}")
