"""A run whose daemon does not answer: its folder tells what it says, and goes on telling it."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from daemon.settings import CostSettings
from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from tests.helpers.interface.harness import own_daemon, write_job
from tests.helpers.interface.runs import Tape, usual
from tests.helpers.waiting import until_async
from wanlora_tui.feeds.folder_events import HerePieces
from wanlora_tui.feeds.last_seen import LastSeenFile
from wanlora_tui.feeds.run_feed import RunFeed
from wanlora_tui.feeds.run_times import run_times


@asynccontextmanager
async def followed(feed: RunFeed) -> AsyncIterator[None]:
    following = asyncio.create_task(feed.follow(lambda: None))
    try:
        yield
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


def record_of(tape: Tape, folder: Path) -> JobRecord:
    """As an earlier daemon has left it."""
    return JobRecord(
        id=1,
        name=tape.name,
        job_path="/j",
        out=str(folder),
        gpus=[0],
        state="running",
        pid=7,
        attempt=1,
        step=50,
        steps=300,
    )


async def test_without_a_daemon_the_folder_tells_the_run_to_its_end(tmp_path: Path):
    tape = usual(until=60)
    file = tape.write(tmp_path / tape.name)
    feed = RunFeed(Client(tmp_path / "none"), record_of(tape, tmp_path), LastSeenFile(tmp_path / "seen"))
    cost = CostSettings(rate=3600.0, currency="EUR")
    assert (feed.view.step, run_times(feed.record, feed.view, cost=cost).cost) == (50, ""), "what is not known yet"
    async with followed(feed):
        await until_async(lambda: feed.view.last_seq == len(tape.events), "all events")
        assert (feed.view.step, feed.view.run) == (60, "run-orbit_v1") and feed.problem
        assert run_times(feed.record, feed.view, cost=cost).cost.startswith("EUR 20.46/")
        before = len(tape.events)
        for step in range(61, 300):
            tape.step(step)
        tape.add("done", step=300, files=[], seconds=93.0)
        lines = [msgspec.json.encode(event) + b"\n" for event in tape.events[before:]]
        with file.open("ab") as f:
            f.write(b"".join(lines[:-1]) + b"no event\n" + lines[-1][:9])
        await until_async(lambda: feed.view.step == 299, "what is written meanwhile")
        assert feed.view.state == "running", "the last line is not whole yet"
        with file.open("ab") as f:
            f.write(lines[-1][9:])
        await until_async(lambda: feed.view.state == "done", "the end")
        tape = Tape("orbit_v1", steps=10)
        tape.start()
        for event in tape.events:
            event.run = "another"
        tape.write(tmp_path / tape.name)
        await until_async(lambda: feed.view.run == "another", "the run that has begun anew")
        assert (feed.view.step, feed.anew) == (0, 1)


async def test_a_daemon_that_answers_tells_it_alone(tmp_path: Path):
    with own_daemon() as folder:
        async with Client(folder) as client:
            record = await client.submit(write_job(tmp_path, steps=60, pace_ms=40))
            feed = RunFeed(client, record, LastSeenFile(tmp_path / "seen"))
            async with followed(feed):
                await until_async(lambda: feed.record.state == "done", "the end")
                assert feed._folder._offset == 0


async def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path):
    tape = usual()
    (tmp_path / tape.name / "events.jsonl").mkdir(parents=True)
    feed = RunFeed(Client(tmp_path / "none"), record_of(tape, tmp_path), LastSeenFile(tmp_path / "seen"))
    async with followed(feed):
        await until_async(lambda: "The run folder cannot be read" in feed.problem, "why")


class Lingering(HerePieces):
    """Files that are let go of only once the loop has had its turn."""

    def __init__(self) -> None:
        self.loop, self.turn, self.is_closed = asyncio.get_running_loop(), threading.Event(), False

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.turn.set)
        self.is_closed = self.turn.wait(20)


async def test_letting_go_of_a_folder_does_not_hold_up_the_screens(tmp_path: Path):
    tape, pieces = usual(until=60), Lingering()
    tape.write(tmp_path / tape.name)
    client, seen = Client(tmp_path / "none"), LastSeenFile(tmp_path / "seen")
    feed = RunFeed(client, record_of(tape, tmp_path), seen, pieces=pieces)
    async with followed(feed):
        await until_async(lambda: feed.view.last_seq == len(tape.events), "all events")
    assert pieces.is_closed
