"""The demo's steps: clips and a tiny model made by the engine's own process, a run name that is free, a submitted job."""

import subprocess
import sys
from pathlib import Path

from daemon.client import Client
from daemon.protocol import LIVE_STATES, JobRecord
from presets.errors import UserError
from presets.fold import RunView
from presets.jobfile import load_job, save_job, with_value


def prepare(folder: Path, steps: int | None = None) -> Path:
    """Write folder/clips, folder/base and folder/job.toml; gives the job file. Raises UserError."""
    command = [sys.executable, "-m", "engine.demo", str(folder), *(["--steps", str(steps)] if steps else [])]
    made = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        said = made.stderr.strip().rpartition("\n")[2]
        raise UserError(f"the demo could not be prepared: {said or f'exit code {made.returncode}'}", fix="" if said else f"Choose another folder than {folder}")
    return folder / "job.toml"


def free_job(job: Path, taken: set[str]) -> Path:
    """The job file itself, or a copy of it with the next free name when its run folder is in use: `demo`, `demo-2`, `demo-3`."""
    first = load_job(job)
    runs, name, number = job.parent / "runs", first.job.name, 1
    while name in taken or (runs / name).exists():
        number += 1
        name = f"{first.job.name}-{number}"
    if number == 1:
        return job
    path = job.with_name(f"job-{number}.toml")
    path.unlink(missing_ok=True)
    save_job(with_value(first, "job.name", name), path)
    return path


async def under_way(out: Path, folder: Path | None) -> JobRecord | None:
    """The demo that already trains or waits in this folder, if there is one: it is taken up, and its files are left alone."""
    async with Client(folder) as client:
        live = [r for r in await client.jobs() if r.out == str(out / "runs") and r.state in LIVE_STATES]
        return live[-1] if live else None


async def submit(job: Path, folder: Path | None) -> JobRecord:
    """Hand the demo job to the daemon, under a name that is free in its folder and there."""
    async with Client(folder) as client:
        return await client.submit(free_job(job, {r.name for r in await client.jobs()}), job.parent / "runs")


async def ended(record: JobRecord, folder: Path | None) -> tuple[JobRecord, RunView] | None:
    """The job's record and fold if it is over, else None."""
    async with Client(folder) as client:
        now, view = await client.snapshot(str(record.id))
        return None if now.state in LIVE_STATES else (now, view)
