"""A launch that is under way when the daemon is to end, a trainer's log that grows without end,
and what a launcher that died has left."""

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from daemon.background_io import BackgroundIO
from daemon.jobs.runner import Runner, cut
from daemon.processes.proc import MARKER, ProcessId, identify, is_alive, marked
from daemon.queue.entry import Entry
from daemon.queue.job_queue import Queue
from daemon.wire.paths import daemon_paths
from daemon.wire.protocol import JobRecord
from tests.helpers.waiting import PATIENCE, until

LAUNCHER = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
    " start_new_session=True); sys.stdin.read()"
)


async def test_a_launch_that_is_under_way_is_waited_for_but_not_for_ever(tmp_path: Path):
    runner = Runner(
        daemon_paths(tmp_path), ["true"], Queue([]), BackgroundIO(), lambda instructions: None, lambda: True
    )
    await runner.launched(60)  # there is none
    prepared = asyncio.Event()
    launch = runner._launches[1] = asyncio.create_task(prepared.wait())
    await runner.launched(0.01)
    assert not launch.done()
    waiting = asyncio.create_task(runner.launched(600))
    await asyncio.sleep(0)
    assert not waiting.done()
    prepared.set()
    await waiting
    assert launch.done()


def test_a_log_that_is_too_long_goes_on_in_an_empty_one(tmp_path: Path):
    log = tmp_path / "attempt_1.log"
    with log.open("ab", buffering=0) as trainer:
        trainer.write(b"a" * 5000)
        cut(log, 10_000)
        assert log.stat().st_size == 5000 and list(tmp_path.iterdir()) == [log]
        trainer.write(b"b" * 50_000)
        cut(log, 10_000)
        trainer.write(b"after")
    assert log.read_bytes() == b"after"
    assert (tmp_path / "attempt_1.log.1").read_bytes() == b"a" * 5000 + b"b" * 50_000
    log.write_bytes(b"c" * 50_000)
    cut(log, 10_000)
    assert (tmp_path / "attempt_1.log.1").read_bytes() == b"c" * 50_000


def test_what_is_no_file_is_left_alone(tmp_path: Path):
    os.mkfifo(tmp_path / "attempt_1.log")
    with pytest.raises(OSError):
        cut(tmp_path / "attempt_1.log", 0)


async def test_what_a_launcher_has_left_is_looked_for_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    marker, threads = f"/test/{os.getpid()}:2", list[threading.Thread]()

    def noted(marker: str) -> list[ProcessId]:
        threads.append(threading.current_thread())
        return marked(marker)

    monkeypatch.setattr("daemon.jobs.runner.marked", noted)
    child = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, env=os.environ | {MARKER: marker})
    looked = asyncio.Event()
    launcher = identify(child.pid)
    assert launcher is not None
    record = JobRecord(id=1, name="x", job_path="/j", out="/runs", gpus=[], state="running")
    runner = Runner(
        daemon_paths(tmp_path), ["true"], Queue([]), BackgroundIO(), lambda _: None, lambda: True, looked.set
    )
    runner.adopt(Entry(record=record, order=1), launcher, marker)
    trainer = runner.trainers[1]
    _, worker = until(lambda: m if len(m := marked(marker)) == 2 else None)
    assert trainer.poll() and not threads and is_alive(worker)  # nothing is looked for while it lives
    child.kill()
    child.wait()
    async with asyncio.timeout(PATIENCE):
        while trainer.poll():
            with suppress(TimeoutError):  # as the daemon's ticks come
                await asyncio.wait_for(looked.wait(), 0.05)
            looked.clear()
    assert not is_alive(worker)
    assert len(threads) >= 2 and threading.main_thread() not in threads
    looks = len(threads)
    assert not trainer.poll() and not trainer.poll()
    await asyncio.sleep(0)
    assert len(threads) == looks  # it is over for good
    runner.let_go(1)
    assert child.stdin is not None
    child.stdin.close()
