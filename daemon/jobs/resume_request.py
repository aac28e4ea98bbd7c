"""What must be so before a run is resumed: its job file as it was, or its changes accepted, and the wanted checkpoint
there."""

from pathlib import Path

from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from presets.job.resume_check import ResumeCheck, check_resume, has_checkpoint, held_job
from presets.job.schema import Job
from presets.job.toml_file import absolute_paths, load_job, with_value
from presets.runs.checkpoints import StoredCheckpoint
from presets.text import to_type


def changed_since(record: JobRecord, copy: Path | None) -> tuple[Job, ResumeCheck]:
    """The user's job file as it is now with its paths made absolute, and how it differs from the run's own
    (RUN/job.toml; or the daemon's `copy`, where there is one, before the trainer has written that, and when that cannot
    be read).

    A missing job file counts as unchanged. Raises UserError when it cannot be read, or has become another run's.
    """
    path, run_dir = Path(record.job_path), Path(record.run_dir)
    before, unreadable = held_job(run_dir, path.parent)
    if before is None and copy is not None:
        before = load_job(copy)  # it holds absolute paths
    now = absolute_paths(load_job(path), path.parent) if before is None or path.exists() else before
    own = record.run_name or record.name
    if now.job.name not in (own, record.file_name):
        raise UserError(
            f"names another run by now ({now.job.name})",
            where=record.job_path,
            fix=f"Set job.name back to {record.file_name or own}, or submit it as a new job",
        )
    now = with_value(now, "job.name", own)
    before = with_value(before, "job.name", own) if before is not None else None
    return now, check_resume(before, now, trained=has_checkpoint(run_dir), unreadable=unreadable)


def require_accepted(record: JobRecord, asked: ResumeCheck, accepted: str | None, *, submitted: str = "") -> None:
    """Raises UserError when the job file has changed in ways that break exactness and just these were not `accepted`
    (their digest), or so that no checkpoint fits it any more. `submitted`: the job file, if it was handed in anew."""
    does, operand = ("submit", submitted) if submitted else ("resume", record.name)
    again = to_type(does, operand, "--accept-changes")
    asked.require(
        accepted,
        where=record.name,
        file=record.job_path,
        accept=f"accept it: {again}",
    )


def require_checkpoint(record: JobRecord, there: list[StoredCheckpoint], step: int | None) -> None:
    """Raises UserError when there is no complete checkpoint of the step to go back to."""
    steps = [c.step for c in there]
    if step is not None and step not in steps:
        raise UserError(
            f"has no checkpoint of step {step}",
            where=record.name,
            fix=(
                f"These are there: {', '.join(map(str, steps))}. More about them: {to_type('checkpoints', record.name)}"
                if steps
                else "It has none at all; resume without --from to begin anew"
            ),
        )
