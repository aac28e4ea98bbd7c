"""A real daemon with the test trainer, and the real `wanlora` in processes of their own."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon.client import Client, NotRunning, ping
from daemon.protocol import LIVE_STATES
from presets.job import DatasetPanel, Job, JobPanel, TrainingPanel
from presets.jobfile import save_job

ROOT = Path(__file__).parents[2]
TRAINER = [sys.executable, "-m", "tests.wanlora_tui.trainer"]
DEADLINE = 60.0  # generous: other work may share the cores


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition and give its value."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {DEADLINE} s")


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | more


def wanlora(*args: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None, timeout: float = DEADLINE) -> "subprocess.CompletedProcess[str]":
    """Run the real command and give what it said."""
    command = [sys.executable, "-m", "wanlora_tui.cli", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env or environment(), capture_output=True, text=True, timeout=timeout, check=False)


def short_dir() -> Path:
    """A folder whose sockets' paths are short enough."""
    return Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))


def write_job(folder: Path, name: str = "orbit_v1", *, steps: int = 60, pace_ms: int = 0) -> Path:
    """A job file for the test trainer."""
    job = Job(job=JobPanel(name=name), training=TrainingPanel(steps=steps, warmup_steps=pace_ms), datasets=[DatasetPanel(path="clips")])
    path = folder / f"{name}.toml"
    save_job(job, path)
    return path


@contextmanager
def running_daemon(folder: Path) -> Iterator[Path]:
    """A daemon of its own in `folder`, with the test trainer; ended together with its trainers."""
    folder.mkdir(exist_ok=True)
    with (folder / "daemon.out").open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "daemon", "--dir", str(folder), "--trainer", *TRAINER], cwd=ROOT, env=environment(), stdout=out, stderr=out)
    try:
        until(lambda: answers(folder) or process.poll() is not None, "the daemon's answer")
        assert process.poll() is None, (folder / "daemon.out").read_text()
        yield folder
    finally:
        end_daemon(folder)
        process.terminate()
        process.wait(20)


def answers(folder: Path) -> bool:
    try:
        ping(folder)
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
            for _ in range(200):
                if not any(job.state in LIVE_STATES for job in await client.jobs()):
                    break
                await asyncio.sleep(0.05)
            await client.shutdown()

    if answers(folder):
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
