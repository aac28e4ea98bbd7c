"""A real daemon with the test trainer, and the real `wanlora` in processes of their own."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from daemon.errors import NotRunning
from daemon.wire.blocking import ping
from daemon.wire.client import Client
from daemon.wire.protocol import LIVE_STATES
from presets.job.schema import DatasetPanel, Job, JobPanel, TrainingPanel
from presets.job.toml_file import save_job
from tests.helpers import NO_GPUS, ROOT, UNCOMPILED
from tests.helpers.interface.commands import run
from tests.helpers.interface.forked_daemon import start_daemon
from tests.helpers.waiting import LOOK, PATIENCE, until

TRAINER = [sys.executable, "-m", "tests.helpers.interface.trainer"]


BEGIN_A_DAEMON = {"daemon", "submit", "demo", "attach"}
LIBRARIES = {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}  # before cv2 is imported, which changes it


def environment(**more: str) -> dict[str, str]:
    dropped = ("NO_COLOR", "COLUMNS", "LINES", "LD_LIBRARY_PATH")
    kept = {k: v for k, v in os.environ.items() if k not in dropped} | LIBRARIES
    # what a fixture has put first stays: of a test that starts a daemon, the GPUs that there are not
    path = os.pathsep.join(dict.fromkeys([*filter(None, kept.get("PYTHONPATH", "").split(os.pathsep)), str(ROOT)]))
    return kept | UNCOMPILED | {"PYTHONPATH": path, "TERM": "xterm-256color"} | more


def wanlora(
    *args: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the real command (tests.helpers.interface.commands) and give what it said. One that may start a daemon knows
    of no GPU."""
    if env is None and args and args[0] in BEGIN_A_DAEMON:
        env = environment(PYTHONPATH=f"{NO_GPUS}{os.pathsep}{ROOT}")
    return run([*map(str, args)], cwd=cwd, environment=env or environment(), timeout=PATIENCE)


def short_dir() -> Path:
    """A folder whose sockets' paths are short enough."""
    return Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))


def write_job(folder: Path, name: str = "orbit_v1", *, steps: int = 60, pace_ms: int = 0) -> Path:
    """A job file for the test trainer."""
    job = Job(
        job=JobPanel(name=name),
        training=TrainingPanel(steps=steps, warmup_steps=pace_ms),
        datasets=[DatasetPanel(path="clips")],
    )
    path = folder / f"{name}.toml"
    save_job(job, path)
    return path


@contextmanager
def running_daemon(folder: Path) -> Iterator[Path]:
    """A daemon of its own in `folder`, with the test trainer; ended together with its trainers."""
    folder.mkdir(exist_ok=True)
    with (folder / "daemon.out").open("wb") as out:
        process = start_daemon(
            ["--dir", str(folder), "--trainer", *TRAINER], cwd=ROOT, environment=environment(), out=out.fileno()
        )
    try:
        until(lambda: answers(folder) or process.poll() is not None, "the daemon's answer")
        assert process.poll() is None, (folder / "daemon.out").read_text()
        yield folder
    finally:
        end_daemon(folder)
        process.terminate()
        process.wait(PATIENCE)


def answers(folder: Path, timeout: float = 2.0) -> bool:
    try:
        ping(folder, timeout=timeout)
        return True
    except NotRunning:
        return False


def end_daemon(folder: Path) -> None:
    """Cancel what lives there, then end the daemon."""

    async def go() -> None:
        async with Client(folder) as client:
            for job in await client.jobs():
                if job.state in LIVE_STATES:
                    await client.cancel(job.id)
            while any(job.state in LIVE_STATES for job in await client.jobs()):
                await asyncio.sleep(LOOK)
            await client.shutdown()

    if answers(folder, PATIENCE):  # it may be busy, and must not be left behind
        with ThreadPoolExecutor(1) as thread:  # callers may have a loop of their own
            thread.submit(lambda: asyncio.run(go())).result()


@contextmanager
def own_daemon() -> Iterator[Path]:
    folder = short_dir()
    try:
        with running_daemon(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
