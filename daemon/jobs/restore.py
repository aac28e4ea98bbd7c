"""How a new daemon continues where the last one ended: trainers that run are adopted, those that a restart of the
machine, its container or its session has ended are told from those that ended by themselves, and trainers that the job
table has lost are taken up as jobs.

What becomes of the jobs is daemon.queue.restarts's.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from daemon.events.event_tail import Tail
from daemon.events.event_tails import ends_of
from daemon.jobs.attempt_result import exit_noted, last_word, progress_of
from daemon.processes.occupants import attempt_of, devices_of, job_file_of, marked_by, run_dir_of
from daemon.processes.proc import ProcessId, age, boot_id, is_alive, marked, oom_kills, session_id
from daemon.queue import restarts
from daemon.queue.entry import Changed, Entry
from daemon.wire import protocol as wire
from presets.atomic_file import write_file
from presets.errors import UserError
from presets.job.resume_check import JOB_FILE
from presets.job.toml_file import absolute_paths, dump_job, load_job
from presets.machine.gpus import visible_gpus
from presets.machine.visible_gpus import pick

if TYPE_CHECKING:
    from daemon.jobs.service import Service

log = logging.getLogger("daemon")

CONTAINER = "The container restarted"
TOGETHER = "The daemon and all its trainers were ended at once (by the end of a container, service or login, perhaps)"
TOGETHER_SECONDS = 2.0  # a trainer that has written later than this after the daemon's last sign of life outlived it


def restore(jobs: "Service") -> None:
    """Bring all jobs up to what has become of them since the last daemon."""
    queue = jobs.queue
    _name_devices(jobs)
    adopt_orphans(jobs)
    ends = ends_of([e.record for e in queue.running()])
    for job, end in ends.items():
        queue.entries[job].record.step = end.view.step or queue.entries[job].record.step
    what = _broken_off_by(jobs, ends)
    for fact, value in (("boot", boot_id()), ("session", session_id()), ("closed", "")):
        jobs.remember(fact, value)
    jobs.show_life()
    if what:
        _after_restart(jobs, what, ends)
    else:
        for entry in queue.running():
            if entry.record.id not in jobs.runner.trainers:
                _adopt(jobs, entry)
    jobs.apply(queue.fill(time.monotonic()))


def _name_devices(jobs: "Service") -> None:
    """For jobs from before the table held the names."""
    nameless = [
        e
        for e in jobs.queue.entries.values()
        if e.record.state in wire.LIVE_STATES and e.shell is None and not e.record.devices
    ]
    visible = visible_gpus() if nameless else None
    for entry in nameless:
        entry.record.devices = pick(entry.record.gpus, visible, all_of_them=True)


# --- after a restart of the machine ---------------------------------------------------------------------------


def _broken_off_by(jobs: "Service", ends: Mapping[int, Tail]) -> str:
    """What has ended the last daemon and all its trainers, as a clause; "" when nothing has."""
    last_boot, last_session = jobs.store.fact("boot"), jobs.store.fact("session")
    if last_boot and last_boot != boot_id():
        return restarts.MACHINE
    running = jobs.queue.running()
    if not last_boot or any(_lives(jobs, e) for e in running):
        return ""
    if last_session and last_session != session_id():
        return CONTAINER
    launched = [e for e in running if e.trainer is not None]
    with suppress(OSError):
        if launched and not jobs.store.fact("closed"):
            seen = jobs.sign_of_life.stat().st_mtime
            if not any(_ended_by_itself(jobs, e, ends.get(e.record.id), seen) for e in launched):
                return TOGETHER
    return ""


def _lives(jobs: "Service", entry: Entry) -> bool:
    return bool((entry.trainer and is_alive(entry.trainer)) or marked(jobs.runner.marker(entry)))


def _ended_by_itself(jobs: "Service", entry: Entry, tail: Tail | None, seen: float) -> bool:
    """Whether a trainer that is gone left a word, an exit code, or events from after the daemon was last `seen`."""
    return (
        (tail is not None and last_word(entry, tail) is not None)
        or exit_noted(jobs.runner.log_of(entry.record))
        or (tail is not None and tail.view.updated_at > seen + TOGETHER_SECONDS)
    )


def _after_restart(jobs: "Service", what: str, ends: Mapping[int, Tail]) -> None:
    log.info("%s", what)
    settings = jobs.settings.value.daemon
    entries = jobs.queue.entries
    said = {job: last_word(entries[job], end) for job, end in ends.items()}
    jobs.apply(
        restarts.broken_off(
            jobs.queue,
            time.monotonic(),
            # one that has stopped was asked to by the machine as it went down
            {job: word for job, word in said.items() if word is not None and word.state != "stopped"},
            what=what,
            most=max(1, settings.restarts) if settings.on_boot == "resume" else None,
            gained=frozenset(job for job, end in ends.items() if progress_of(entries[job], end).saved),
        )
    )


# --- trainers that run ----------------------------------------------------------------------------------------


def _adopt(jobs: "Service", entry: Entry) -> None:
    """Take up an entry whose trainer should run."""
    now, job, marker = time.monotonic(), entry.record.id, jobs.runner.marker(entry)
    process = entry.trainer
    if process is None and (found := marked(marker)):  # the old daemon died right after launching it
        process = found[0]
        jobs.apply(jobs.queue.launched(job, process, now, first_seq=entry.first_seq, oom_kills=oom_kills()))
    if process is None:
        log.info("job %d had not been launched yet", job)
        jobs.apply(jobs.queue.never_launched(job, now))
        return
    jobs.runner.adopt(entry, process, marker)
    log.info("job %d: %s trainer %d", job, "adopted" if is_alive(process) else "lost", process.pid)
    jobs.apply(jobs.queue.adopted(job, now))


def adopt_orphans(jobs: "Service") -> None:
    """Take up the trainers of this daemon's state folder that its job table knows nothing of: it was moved away, or an
    older one was put in its place."""
    known = {jobs.runner.marker(e) for e in jobs.queue.running()}
    for marker, processes in marked_by(jobs.paths.state).items():
        if marker in known:
            continue
        try:
            _take_up(jobs, marker, processes)
        except (OSError, ValueError) as e:  # UserError is one
            log.warning("pid %d is a trainer of ours that cannot be taken up: %s", processes[0].pid, e)


def _take_up(jobs: "Service", marker: str, processes: list[ProcessId]) -> None:
    launcher, run_dir = processes[0], run_dir_of(processes)
    if run_dir is None:
        raise UserError("where it works cannot be seen")
    file = run_dir / JOB_FILE
    file = file if file.exists() else job_file_of(launcher.pid)
    job = load_job(file)
    there = [e for e in jobs.queue.entries.values() if e.record.run_dir == str(run_dir)]
    if any(e.record.state in wire.RUNNING_STATES for e in there):
        raise UserError(f"job {there[-1].record.id} has its run folder")
    if there:
        entry = there[-1]
    else:
        record = wire.JobRecord(
            id=jobs.store.next_id(),
            name=run_dir.name,
            job_path=str(file),
            out=str(run_dir.parent),
            gpus=sorted(set(job.job.gpus)),
            state="queued",
            submitted_at=time.time() - age(launcher),
            steps=job.training.steps,
        )
        entry = Entry(record=record, order=jobs.queue.last_place())
        write_file(jobs.paths.job_file(record.id), dump_job(absolute_paths(job, file.parent)).encode(), sync=True)
        jobs.queue.entries[record.id] = entry
    record = entry.record
    restarts.requeue(entry)
    record.devices = devices_of(launcher.pid) or record.devices
    record.state, entry.resume, entry.marker = "starting", True, marker
    tail = ends_of([record]).get(record.id) or Tail(run_dir)
    record.attempt = attempt_of(launcher.pid) or max(1, tail.view.attempt)
    # what this attempt has written counts as new, so that its `started` and its last word are seen
    before = max((e.seq for e in (tail.started, tail.last_word) if e and e.attempt < record.attempt), default=0)
    log.info("job %d: %s, lost by the job table, is taken up: trainer %d", record.id, record.name, launcher.pid)
    jobs.runner.adopt(entry, launcher, marker)
    started = jobs.queue.launched(
        record.id, launcher, time.monotonic() - age(launcher), first_seq=before, oom_kills=oom_kills()
    )
    jobs.apply([Changed(record.id), *started])
