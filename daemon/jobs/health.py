"""How the daemon does: what is wrong with it, and what it uses. For people, and for what watches it."""

import asyncio
import os
import shutil
import sqlite3
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil

from daemon.jobs.service import Service
from daemon.processes.proc import age, identify
from daemon.wire.answers import DiskRoom, HealthReply, RunHealth
from daemon.wire.lock import read_holder
from presets.errors import UserError
from presets.report.best import best_step
from presets.runs.run_view import RunView
from presets.text import human, to_type

LEAST_FREE = 2**28  # bytes on the disk of the state folder
LEAST_FREE_RUN = 2**31  # on that of a run folder: a checkpoint and its previews
SECONDS = 1.5  # for a disk's answer: the client waits for ours
RECENT = 3600.0  # seconds for which a command or message that failed counts as a problem
QUIET = 1800.0  # seconds without any event: longer than a long preview or a large checkpoint takes


async def health_of(service: Service) -> HealthReply:
    """Looks at disks in the background; one that does not answer is a problem like others."""
    await service.settings.look(service.background)
    problems, now = service.troubles(), time.time()
    trouble = service.unwritable
    if not trouble and (trouble := _table_trouble(service)):
        problems.insert(0, f"The job table cannot be written: {trouble}.")
    running = service.queue.running()
    folders = {str(service.paths.state): LEAST_FREE} | {e.record.run_dir: LEAST_FREE_RUN for e in running}

    async def room_of(folder: str) -> DiskRoom | str:
        try:
            return await service.background(partial(_room, folder), what=folder, seconds=SECONDS)
        except (OSError, UserError) as e:
            return f"The disk of {folder} does not answer: {e}"

    rooms = await asyncio.gather(*map(room_of, folders))
    for room in rooms:
        if isinstance(room, str):
            problems.append(room)
        elif room.free < folders[room.path]:
            problems.append(f"The disk of {room.path} has {human(room.free)} left.")
    runs = []
    for entry in running:
        record, alive = service.record(entry), entry.record.id in service.runner.trainers
        quiet = max(0.0, time.monotonic() - service.last_event(entry)) if alive else 0.0
        view = tail.view if (tail := service.tails.get(record.id)) else None
        runs.append(
            RunHealth(
                record.id,
                record.name,
                record.state,
                record.doing,
                record.step,
                record.steps,
                quiet,
                alive,
                held_out=view.measured[-1].loss if view and view.measured and view.measured[-1].finite else None,
                best_step=await _best_step(service, record.run_dir, view) if view and view.measured else None,
            )
        )
        if quiet > QUIET and record.doing != "paused":
            problems.append(f"{record.name} has said nothing for {quiet / 60:.0f} minutes.")
        if record.doing == "paused":
            problems.append(f"{record.name} is paused; its log says why: {to_type('watch', record.name)}.")
    if service.idle.problem:
        problems.append(f"{service.idle.problem[:1].upper()}{service.idle.problem[1:]}")
    failures = [f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))} {text}" for at, text in
                service.follow_ups.failures]  # fmt: skip
    if service.follow_ups.failures and now - service.follow_ups.failures[-1][0] < RECENT:
        problems.append(service.follow_ups.failures[-1][1])
    process = psutil.Process()
    return HealthReply(
        problems=problems,
        uptime=age(own) if (own := identify(os.getpid())) else 0.0,
        queue=dict(Counter(e.record.state for e in service.queue.entries.values())),
        paused=service.queue.paused,
        runs=runs,
        disks=[room for room in rooms if isinstance(room, DiskRoom)],
        table_writable=not trouble,
        follow_ups=service.follow_ups.pending,
        failures=failures,
        idle_in=service.idle.left,
        rss=process.memory_info().rss,
        threads=process.num_threads(),
        descriptors=process.num_fds(),
        connections=_connections(service),
        log_bytes=_size(service.paths.log),
    )


async def _best_step(service: Service, folder: str, view: RunView) -> int | None:
    """As `wanlora checkpoints` says; where the run's disk does not answer, by the held-out loss alone."""
    seen = RunView(checkpoints=list(view.checkpoints), measured=list(view.measured))
    try:
        return await service.background(partial(best_step, Path(folder), seen), what=folder, seconds=SECONDS)
    except (OSError, UserError):
        return view.ranking.best if view.ranking else None


def _room(folder: str) -> DiskRoom:
    """Of the folder, or of the nearest one above it that is there."""
    path = next(p for p in (Path(folder), *Path(folder).parents) if p.exists())
    found = shutil.disk_usage(path)
    return DiskRoom(folder, found.free, found.total)


def _table_trouble(service: Service) -> str:
    try:
        with service.store as store:
            store.set_fact("checked", f"{time.time():.0f}")
        return ""
    except sqlite3.Error as e:
        return str(e)


def _connections(service: Service) -> int:
    """Of clients, by what the kernel says of the sockets in our folder: each client has one or two."""
    holder = read_holder(service.paths)
    folder = holder.runtime if holder is not None and holder.pid == os.getpid() else str(service.paths.runtime)
    try:
        lines = Path("/proc/net/unix").read_text().splitlines()
    except OSError:
        return 0
    fields = (line.split() for line in lines)
    return sum(len(f) == 8 and f[5] == "03" and f[7].startswith(f"{folder}/") for f in fields)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
