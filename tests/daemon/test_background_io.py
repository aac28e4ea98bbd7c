"""Work that hangs: its asker is told, and neither the loop nor the end of the process waits for it."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from daemon import background_io
from daemon.background_io import BackgroundIO
from presets.errors import UserError
from tests.helpers import ROOT
from tests.helpers.waiting import PATIENCE


def fail() -> None:
    raise TimeoutError(110, "the disk's own")


async def test_it_gives_what_the_work_gives():
    beside = BackgroundIO()
    assert await beside(lambda: 7, what="x") == 7
    with pytest.raises(TimeoutError, match="the disk's own"):
        await beside(fail, what="x")


async def test_who_is_cancelled_as_the_work_ends_is_cancelled():
    beside, go = BackgroundIO(), threading.Event()
    asking = asyncio.create_task(beside(go.wait, what="x"))
    await asyncio.sleep(0)
    go.set()
    while beside._at_work:
        await asyncio.sleep(0)
    asking.cancel()  # it has its answer and has not gone on with it yet
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_what_hangs_is_given_up_and_only_so_much_may_hang(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(background_io, "MOST", 3)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    beside = BackgroundIO()
    for _ in range(3):
        with pytest.raises(UserError, match=r"/net/job\.toml: has not come for 0 s"):
            await beside(pipe.read_bytes, what="/net/job.toml", seconds=0.05)
    with pytest.raises(UserError, match="too many files do not come"):
        await beside(lambda: 7, what="x")
    os.close(os.open(pipe, os.O_WRONLY))  # the disk is back
    async with asyncio.timeout(PATIENCE):
        while beside._at_work:
            await asyncio.sleep(0.01)
    assert await beside(lambda: 7, what="x") == 7


async def test_a_machine_that_slept_through_the_time_goes_on_waiting(monkeypatch: pytest.MonkeyPatch):
    loop, beside, go, slept = asyncio.get_running_loop(), BackgroundIO(), threading.Event(), 0.0
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + slept)
    asking = asyncio.create_task(beside(go.wait, what="x", seconds=PATIENCE))
    await asyncio.sleep(0)
    slept = 2 * PATIENCE
    for _ in range(5):  # what is due is done
        await asyncio.sleep(0)
    go.set()
    assert await asking


def test_a_process_ends_all_the_same(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import asyncio\nfrom pathlib import Path\nfrom daemon.background_io import BackgroundIO\n"
        "from presets.errors import UserError\ntry:\n"
        f"    asyncio.run(BackgroundIO()(Path({str(tmp_path / 'pipe')!r}).read_bytes, what='x', seconds=0.05))\n"
        "except UserError as e:\n    print(e)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert "has not come" in said.stdout and said.stderr == ""


async def test_a_thread_is_used_again_but_never_one_that_hangs():
    beside, go = BackgroundIO(), threading.Event()
    first = await beside(threading.current_thread, what="x")
    for _ in range(20):
        assert await beside(threading.current_thread, what="x") == first
    hanging = asyncio.create_task(beside(go.wait, what="a lost disk"))
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        others = {await beside(threading.current_thread, what="x") for _ in range(20)}
    assert len(others) == 1 and first not in others
    go.set()
    assert await hanging


async def test_after_many_at_once_few_threads_stay_and_none_when_nobody_can_use_them():
    beside, all_there = BackgroundIO(), threading.Barrier(background_io.KEPT + 5)
    threads = set()

    def work() -> None:
        threads.add(threading.current_thread())
        all_there.wait()

    await asyncio.gather(*(beside(work, what="x") for _ in range(background_io.KEPT + 5)))
    assert len(threads) == background_io.KEPT + 5
    async with asyncio.timeout(PATIENCE):
        while sum(thread.is_alive() for thread in threads) > background_io.KEPT + 2:
            await asyncio.sleep(0.01)
        del beside
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)
