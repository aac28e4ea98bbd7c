"""Following files as they grow: told by the kernel or looked for, and past disks that do not answer."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.background_io import BackgroundIO
from daemon.events import live_reader
from daemon.events.event_tail import Tail
from daemon.events.event_tails import Tails
from daemon.events.live_reader import LiveReader
from daemon.events.stored_fold import FOLD_FILE
from daemon.wire.protocol import JobRecord
from tests.daemon.events.test_event_tail import log_event, seqs
from tests.helpers.waiting import until_async as until


class Followed:
    """Some jobs' files and what was heard of them."""

    def __init__(self, dir: Path) -> None:
        self.dir = dir
        self.heard: dict[int, list[int]] = {}
        self.tails = Tails(BackgroundIO(), lambda job: job in self.heard)
        self.reader = LiveReader(self.tails, self._take)

    def _take(self, job: int, events: list) -> None:
        if job in self.heard:
            self.heard[job] += seqs(events)

    def follow(self, job: int) -> None:
        self.heard[job] = []
        self.path(job).parent.mkdir(exist_ok=True)
        self.reader.follow(
            JobRecord(id=job, name=f"r{job}", job_path="/j", out=str(self.dir), gpus=[0], state="running")
        )

    def path(self, job: int) -> Path:
        return self.dir / f"r{job}/events.jsonl"

    async def begun(self, job: int) -> None:
        await until(lambda: self.tails.get(job) is not None)

    def write(self, job: int, first: int, last: int) -> None:
        with self.path(job).open("ab") as f:
            for n in range(first, last + 1):
                f.write(log_event(n))

    async def hear(self, job: int, seq: int) -> None:
        await until(lambda: self.heard[job] and self.heard[job][-1] == seq)


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[Followed]:
    followed = Followed(tmp_path)
    yield followed
    followed.reader.close()


async def test_what_is_written_is_heard_once_and_in_order(runs: Followed):
    for job in (1, 2):
        runs.follow(job)
    for n in range(1, 200):
        runs.write(1, 2 * n - 1, 2 * n)
        runs.write(2, n, n)
        await asyncio.sleep(0.001)
    await runs.hear(1, 398)
    await runs.hear(2, 199)
    for job, last in ((1, 398), (2, 199)):  # what lay there before is in the tail alone
        assert runs.heard[job] == list(range(runs.heard[job][0], last + 1)) and runs.heard[job][0] < 100
        assert runs.tails.get(job).last_seq == last


async def test_where_nothing_is_told_files_are_looked_at(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(live_reader, "_inotify", lambda: None)
    runs = Followed(tmp_path)
    runs.follow(1)
    await runs.begun(1)
    for n in range(1, 20):
        runs.write(1, n, n)
        await runs.hear(1, n)
    runs.reader.close()


async def test_a_file_that_grows_without_a_word_is_found_out(runs: Followed, monkeypatch):
    """As on a network disk, written to from another machine."""
    runs.follow(1)
    await runs.begun(1)
    runs.write(1, 1, 1)
    await runs.hear(1, 1)
    run = runs.reader._runs[1]
    run.due = 0.0
    runs.write(1, 2, 2)
    await until(lambda: run.is_told)
    monkeypatch.setattr(live_reader, "NAME", b"of another name")
    for n in range(3, 20):
        runs.write(1, n, n)
        await runs.hear(1, n)
    assert not run.is_told


async def test_what_the_kernel_tells_of_needs_no_thread_until_another_file_lies_there(runs: Followed, monkeypatch):
    runs.follow(1)
    await runs.begun(1)
    runs.write(1, 1, 1)
    await runs.hear(1, 1)
    run, asked = runs.reader._runs[1], []
    runs.write(1, 2, 2)
    await until(lambda: run.is_told)
    monkeypatch.setattr(run.tail, "read", lambda limit, real=run.tail.read: asked.append(limit) or real(limit))
    monkeypatch.setattr(live_reader, "LOOK", 1000.0)
    await until(lambda: run.due > time.monotonic() + 500)
    asked.clear()
    for n in range(3, 10):
        runs.write(1, n, n)
        await runs.hear(1, n)
    assert not asked
    other = runs.path(1).with_name("other")
    other.write_bytes(runs.path(1).read_bytes())
    other.replace(runs.path(1))
    runs.write(1, 10, 10)
    await runs.hear(1, 10)
    assert asked


async def test_while_all_files_grow_the_kernel_is_asked_seldom_until_one_is_replaced(runs: Followed, monkeypatch):
    monkeypatch.setattr(live_reader, "HEAR", 1000.0)
    for job in (1, 2):
        runs.follow(job)
        await runs.begun(job)
    last = 0

    async def grow(*jobs: int) -> None:
        nonlocal last
        last += 1
        for job in jobs:
            runs.write(job, last, last)
        for job in jobs:
            await runs.hear(job, last)

    async def busy() -> bool:
        await grow(1, 2)
        return runs.reader._busy

    await until(busy)
    asked, hear = [], runs.reader._hear
    monkeypatch.setattr(runs.reader, "_hear", lambda: asked.append(last) or hear())
    for _ in range(3):
        await grow(1, 2)
    other = runs.path(1).with_name("other")
    other.write_bytes(runs.path(1).read_bytes())
    other.replace(runs.path(1))
    await grow(1, 2)
    await grow(1)
    await grow(2)
    assert asked and all(runs.heard[job] == sorted(set(runs.heard[job])) for job in (1, 2))


async def test_a_folder_that_is_moved_away_and_made_anew(runs: Followed):
    runs.follow(1)
    await runs.begun(1)
    runs.write(1, 1, 3)
    await runs.hear(1, 3)
    runs.path(1).parent.rename(runs.dir / "away")
    runs.path(1).parent.mkdir()
    runs.write(1, 1, 1)
    await runs.hear(1, 1)
    runs.write(1, 2, 2)
    await runs.hear(1, 2)


async def test_a_disk_that_hangs_holds_up_its_own_run_alone(runs: Followed, monkeypatch):
    monkeypatch.setattr(live_reader, "HUNG", 0.2)
    gates = {1: threading.Event(), 2: threading.Event()}
    real = Tail.read

    def read(self: Tail, limit: int = 2000):
        if (gate := gates.get(int(self.run_dir.name[1:]))) is not None:
            gate.wait()
        return real(self, limit)

    monkeypatch.setattr(Tail, "read", read)
    for job in (1, 2, 3):
        runs.follow(job)
        await runs.begun(job)
        runs.write(job, 1, 1)
    for n in range(2, 20):
        runs.write(3, n, n)
        await runs.hear(3, n)
    await until(lambda: [r.id for r, _ in runs.reader.troubles()] == [1, 2])
    assert "does not answer" in runs.reader.troubles()[0][1]
    for job, gate in gates.items():
        gate.set()
        runs.write(job, 2, 2)
        await runs.hear(job, 2)
    await until(lambda: not runs.reader.troubles())
    assert runs.heard == {1: [1, 2], 2: [1, 2], 3: list(range(1, 20))}


async def test_all_is_read_before_an_end_is_believed(runs: Followed):
    runs.follow(1)
    runs.write(1, 1, 3000)
    assert not runs.reader.is_settled(1)
    await until(lambda: runs.reader.is_settled(1))
    assert runs.tails.get(1).last_seq == 3000
    runs.reader.leave(1)
    await until((runs.dir / "r1" / FOLD_FILE).exists)


async def test_what_cannot_be_read_is_said_and_tried_again(runs: Followed, monkeypatch):
    monkeypatch.setattr(live_reader, "AGAIN", 0.05)
    runs.follow(1)
    os.mkfifo(runs.path(1))
    await until(lambda: "named pipe" in str(runs.reader.troubles()))
    runs.path(1).unlink()
    runs.write(1, 1, 1)
    await until(lambda: runs.tails.get(1) is not None and runs.tails.get(1).last_seq == 1)
    assert runs.reader.troubles() == []


async def test_a_long_run_is_read_by_itself_while_who_asks_is_told_how_far(runs: Followed, monkeypatch):
    monkeypatch.setattr("daemon.events.event_tail.FOLD_SECONDS", 0.0)
    gate, real = threading.Event(), Tail.fold

    def fold(self: Tail, seconds: float = 0.0) -> bool:
        if self.offset:
            gate.wait()
        return real(self, seconds)

    monkeypatch.setattr(Tail, "fold", fold)
    record = JobRecord(id=5, name="r5", job_path="/j", out=str(runs.dir), gpus=[0], state="done")
    runs.path(5).parent.mkdir()
    runs.write(5, 1, 2000)

    async def begun() -> tuple[int, int] | None:
        there = await runs.tails.being_read(record, 0.01)
        return there if there and there[0] else None

    done, total = await until(begun)
    assert total == runs.path(5).stat().st_size > done > 0
    gate.set()

    async def is_read() -> bool:
        return await runs.tails.being_read(record, 0.05) is None

    await until(is_read)
    async with runs.tails.caught_up(record) as tail:
        assert tail.last_seq == 2000
