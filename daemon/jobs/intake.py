"""What a request needs from a user's files. It runs beside the loop, so it reads and changes nothing; what follows is
decided on the loop, from what is true by then."""

import os
from pathlib import Path
from typing import NamedTuple

from daemon.jobs.resume_request import changed_since
from daemon.jobs.roots import ANYWHERE, Roots
from daemon.processes.occupants import writers
from daemon.wire.protocol import JobRecord, Submit
from presets.errors import UserError
from presets.job.resume_check import JOB_FILE, ResumeCheck
from presets.job.schema import Job
from presets.job.toml_file import absolute_paths, default_out, dump_job, load_job
from presets.machine.gpus import visible_gpus
from presets.machine.shell import Shell
from presets.machine.visible_gpus import VISIBLE, pick
from presets.runs.checkpoints import StoredCheckpoint, checkpoints_of
from presets.runs.run_view import RunView

MOST_COMMAND = 2**16  # bytes: the kernel takes twice as much


class Submission(NamedTuple):
    record: JobRecord  # without its id
    text: str  # of the job file, with absolute paths
    held: bool  # the run folder holds a run already
    resume_check: ResumeCheck | None  # how the job file differs from that run, when it is to be resumed
    checkpoints: list[StoredCheckpoint]
    pids: list[int]  # who works in the run folder


class Resumption(NamedTuple):
    job: Job
    text: str
    resume_check: ResumeCheck
    checkpoints: list[StoredCheckpoint]
    devices: list[str]
    pids: list[int]


def require_absolute(*given: str) -> None:
    """Raises UserError: the daemon's working directory is not the client's."""
    for path in given:
        if not path.startswith("/") or "\0" in path:
            raise UserError("the daemon needs an absolute path", where=repr(path)[:200])


def commands_of(asked: Submit) -> dict[str, str]:
    """Event -> the command that this job has for it. Raises UserError."""
    given = {"done": asked.on_done, "failed": asked.on_failed, "stopped": asked.on_stopped}
    for event, command in given.items():
        if command is not None and ("\0" in command or len(command.encode()) > MOST_COMMAND):
            raise UserError(
                f"on_{event} is no command: it holds a zero byte, or more than {MOST_COMMAND} bytes",
                fix="Write a script, and its path here",
            )
    return {event: command.strip() for event, command in given.items() if command is not None}


def read_submission(asked: Submit, now: float, roots: Roots = ANYWHERE) -> Submission:
    """Raises UserError, also for a path that lies outside the roots."""
    path = Path(asked.job_path)
    roots.require(path, "the job file")
    if asked.out:
        roots.require(asked.out, "the folder for runs")
    if path.is_symlink():  # paths in it are relative to the file itself, as for every command without a daemon
        path = path.resolve()
    job = load_job(path)
    record = JobRecord(
        id=0,
        name=job.job.name,
        job_path=str(path),
        out=str(Path(asked.out).resolve() if asked.out else default_out(path)),
        gpus=sorted(set(job.job.gpus)),
        devices=devices_of(job.job.gpus, asked.shell),
        state="queued",
        submitted_at=now,
        steps=job.training.steps,
    )
    whole = absolute_paths(job, path.parent)
    roots.require_job(whole, record.run_dir)
    held = Path(record.run_dir, JOB_FILE).exists()
    resumes = asked.resume and held
    return Submission(
        record,
        dump_job(whole),
        held,
        changed_since(record, None)[1] if resumes else None,
        checkpoints_of(Path(record.run_dir), RunView()) if resumes else [],
        writers(Path(record.run_dir)),
    )


def read_resumption(record: JobRecord, copy: Path, shell: Shell | None, roots: Roots = ANYWHERE) -> Resumption:
    """`copy`: the daemon's, of the job as it was. Raises UserError, also for a path that lies outside the roots."""
    roots.require(record.job_path, "the job file")
    job, check = changed_since(record, copy)
    roots.require_job(job, record.run_dir)
    return Resumption(
        job,
        dump_job(job),
        check,
        checkpoints_of(Path(record.run_dir), RunView()),
        devices_of(job.job.gpus, shell),
        writers(Path(record.run_dir)),
    )


def devices_of(gpus: list[int], shell: Shell | None) -> list[str]:
    """The names of a job's GPUs, as its shell counts them or, where that says nothing, the daemon's own. Asks the
    driver. Raises UserError."""
    if shell is not None and shell.gpus is not None:
        return pick(sorted(set(gpus)), shell.gpus)
    return pick(sorted(set(gpus)), visible_gpus(), all_of_them=VISIBLE not in os.environ)
