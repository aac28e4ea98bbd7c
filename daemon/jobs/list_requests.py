"""Requests about the list of jobs: what the queue makes of them, and what of a user's files must be so before. All
others are daemon.jobs.requests's."""

import time
from functools import partial
from pathlib import Path

import msgspec

from daemon.jobs.service import Service
from daemon.queue.entry import Entry, Instruction
from daemon.queue.list_requests import has_begun
from daemon.wire import protocol as wire
from presets.errors import UserError
from presets.job.resume_check import JOB_FILE
from presets.job.toml_file import parse_value

ListCommand = wire.SetPriority | wire.Move | wire.Hold | wire.Release | wire.Remove | wire.Rename


async def ask_queue(jobs: Service, entry: Entry, command: ListCommand) -> list[Instruction]:
    """What is to be done about it. Raises UserError."""
    queue, job, now = jobs.queue, entry.record.id, time.monotonic()
    match command:
        case wire.SetPriority(priority=priority):
            return queue.set_priority(job, priority, now)
        case wire.Move(place=place, other=other):
            beside = queue.find(other).record.id if place in ("before", "after") else None
            return queue.move(job, place, now, other=beside)
        case wire.Hold():
            return queue.hold(job, now)
        case wire.Release(anyway=anyway):
            return queue.release(job, now, anyway=anyway)
        case wire.Remove():
            return queue.remove(job, now)
        case wire.Rename(name=name):
            return await _rename(jobs, entry, name)


async def _rename(jobs: Service, entry: Entry, name: str) -> list[Instruction]:
    parse_value("job.name", name)
    if not has_begun(entry):
        renamed = msgspec.structs.replace(entry.record, name=name)
        if await jobs.background(partial(Path(renamed.run_dir, JOB_FILE).exists), what=renamed.run_dir):
            raise UserError(
                f"the run folder {renamed.run_dir} already holds a run",
                where=entry.record.name,
                fix="Choose another name",
            )
        jobs.queue.require_known(entry)
        jobs.tails.forget(entry.record.id)  # that of the other folder
    return jobs.queue.rename(entry.record.id, name)
