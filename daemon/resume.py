"""What must be so before a run goes on: its job file as it was, or its changes accepted, and the wanted checkpoint there."""

from pathlib import Path

from daemon.protocol import JobRecord
from presets.changes import UNSEEN, Change, breaking, changes, digest
from presets.errors import UserError
from presets.job import Job
from presets.jobfile import absolute_paths, load_job
from presets.rollback import StoredCheckpoint

JOB_FILE = "job.toml"  # in a run folder: the trainer has accepted the job


def changed_since(record: JobRecord, copy: Path) -> tuple[Job, list[Change]]:
    """The user's job file as it is now with its paths made absolute, and how it differs from the run's own (RUN/job.toml,
    or the daemon's `copy` before the trainer has written that).

    A job file that is gone counts as unchanged. Raises UserError when it cannot be read, or has become another run's.
    """
    held = Path(record.run_dir, JOB_FILE)
    try:
        before = load_job(held if held.exists() else copy)  # both hold absolute paths
    except UserError:  # the trainer says so, and goes on when the changes are accepted
        before = load_job(copy)
    path = Path(record.job_path)
    if not path.exists():
        return before, []
    now = absolute_paths(load_job(path), path.parent)
    if now.job.name != record.name:
        raise UserError(f"names another run by now ({now.job.name})", where=record.job_path, fix=f"Set job.name back to {record.name}, or submit it as a new job")
    return now, changes(before, now)


def require_accepted(record: JobRecord, found: list[Change], accepted: str | None) -> None:
    """Raises UserError when the job file has changed in ways that break exactness and just these were not `accepted` (their
    digest), or so that no checkpoint fits it any more."""
    learnt = any(Path(record.run_dir, "checkpoints").glob("step_*"))
    if learnt and (impossible := [c for c in found if c.impossible]):
        raise UserError(
            f"its job file has changed so that what was learnt does not fit it ({'; '.join(c.text for c in impossible)})", where=record.name,
            fix=f"Set it back in {record.job_path}, or submit it as a new job under another name",
        )  # fmt: skip
    if (wrong := breaking(found)) and accepted not in (digest(wrong), UNSEEN):
        what = "has changed so that the run would not go on as it was begun" if accepted is None else "has other changes by now than those that were accepted"
        raise UserError(
            f"its job file {what} ({'; '.join(c.text for c in wrong)})", where=record.name,
            fix=f"Set it back in {record.job_path}, or accept it: wanlora resume {record.name} --accept-changes",
        )  # fmt: skip


def require_checkpoint(record: JobRecord, there: list[StoredCheckpoint], step: int | None) -> None:
    """Raises UserError when there is no complete checkpoint of the step to go back to."""
    steps = [c.step for c in there]
    if step is not None and step not in steps:
        raise UserError(
            f"has no checkpoint of step {step}", where=record.name,
            fix=f"These are there: {', '.join(map(str, steps))}. More about them: wanlora checkpoints {record.name}" if steps else "It has none at all; resume without --from to begin anew",
        )  # fmt: skip
