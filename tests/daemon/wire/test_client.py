"""The client where the wire loses things: dropped messages, a daemon that restarts, requests that must be repeated."""

import asyncio
import os
import shutil
import signal

import msgspec
import zmq
import zmq.asyncio

from daemon.wire import protocol as wire
from daemon.wire.client import Client
from daemon.wire.paths import daemon_paths, endpoint
from presets.runs.events import Event
from tests.daemon.conftest import Box, until
from tests.daemon.test_daemon import file_events, follow_to_end
from tests.helpers.waiting import PATIENCE


class LossyRelay:
    """Stands between client and daemon: hands requests on, and drops from the feed what `drops` says."""

    def __init__(self, box: Box, dir, drops) -> None:
        self.dir, self._drops, self.dropped = dir, drops, 0
        here, there = daemon_paths(dir), daemon_paths(box.dir)
        here.runtime.mkdir(parents=True)
        here.control.symlink_to(there.control)
        self._context = zmq.asyncio.Context()
        self._in = self._context.socket(zmq.XSUB)
        self._in.connect(endpoint(there.feed))
        self._out = self._context.socket(zmq.XPUB)
        self._out.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._out.bind(endpoint(here.feed))
        self._tasks = [asyncio.create_task(self._up()), asyncio.create_task(self._down())]

    async def _up(self) -> None:
        while True:
            await self._in.send(await self._out.recv())

    async def _down(self) -> None:
        while True:
            data = await self._in.recv()
            if self._drops(msgspec.msgpack.decode(data, type=wire.Feed)):
                self.dropped += 1
            else:
                await self._out.send(data)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)


async def followed_through(box: Box, drops, *, steps: int = 60) -> tuple[list[Event], list[wire.JobRecord], int]:
    """What a client sees of a whole run whose feed loses messages, and how many were lost."""
    (box.dir / "b").mkdir()
    relay = LossyRelay(box, box.dir / "b", drops)
    try:
        async with Client(relay.dir) as client:
            record = await client.submit(box.job("one", steps=steps))
            events, records = await asyncio.wait_for(follow_to_end(client, record.id), PATIENCE)
    finally:
        await relay.close()
        shutil.rmtree(relay.dir)
    return events, records, relay.dropped


async def test_gaps_in_the_middle_are_repaired(box: Box):
    box.start("--pace", "0.02")
    events, records, dropped = await followed_through(
        box, lambda m: isinstance(m, wire.RunEvent) and m.event.seq % 3 != 0
    )
    assert dropped and events == file_events(box.run_dir("one"))
    assert [r.revision for r in records] == sorted({r.revision for r in records})


async def test_the_loss_of_everything_but_beats_is_repaired(box: Box):
    box.start("--pace", "0.02")
    events, records, dropped = await followed_through(box, lambda m: not isinstance(m, wire.Beat))
    assert dropped and events == file_events(box.run_dir("one")) and records[-1].state == "done"


async def test_the_loss_of_the_last_message_is_seen(box: Box):
    box.start("--pace", "0.02")

    def last(message) -> bool:
        return (isinstance(message, wire.RunEvent) and message.event.kind == "done") or (
            isinstance(message, wire.JobChanged) and message.job.state == "done"
        )

    events, records, dropped = await followed_through(box, last, steps=20)
    assert dropped >= 2 and events == file_events(box.run_dir("one")) and records[-1].state == "done"


async def test_a_follow_begins_anywhere_and_ends_with_the_run(box: Box):
    box.start("--pace", "0")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one")
        every = file_events(box.run_dir("one"))
        for since in (0, 5, len(every)):
            events, records = await asyncio.wait_for(follow_to_end(client, "one", since), PATIENCE)
            assert events == every[since:] and records[-1].state == "done"


async def test_a_follow_outlives_daemons_without_repeating_itself(box: Box):
    box.start("--pace", "0.05", "--hold-at", "80")
    async with box.client() as client:
        await client.submit(box.job("one", steps=100))
        following = asyncio.create_task(follow_to_end(client, "one"))
        await box.wait(client, "one", "running")
        epochs = {(await client.hello()).epoch}
        for _ in range(2):
            box.kill9()
            box.start()
            epochs.add((await client.hello()).epoch)
        assert len(epochs) == 3
        await client.stop("one")
        events, _ = await asyncio.wait_for(following, PATIENCE)
        assert events == file_events(box.run_dir("one"))


async def test_a_request_waits_for_a_daemon_that_is_being_replaced(box: Box):
    box.start("--hold-at", "5")
    async with box.client(timeout=0.3, retries=6) as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one", "running")
        os.kill(box.process.pid, signal.SIGSTOP)  # it will not answer this one
        asking = asyncio.create_task(client.stop("one"))
        await asyncio.sleep(0)
        await until(lambda: client._dealer is not None)
        box.kill9()
        await asyncio.to_thread(box.start)
        assert (await asking).state in ("stopping", "stopped")
        assert (await box.wait(client, "one")).state == "stopped"


async def test_two_daemons_in_two_directories_never_meet(box: Box):
    box.start("--hold-at", "5")
    (box.dir / "second").mkdir()
    other = Box(box.dir / "second")
    try:
        other.start("--hold-at", "5")
        async with box.client() as a, other.client() as b:
            await a.submit(box.job("mine"))
            await b.submit(other.job("theirs"))
            await box.wait(a, "mine", "running")
            await other.wait(b, "theirs", "running")
            assert [j.name for j in await a.jobs()] == ["mine"] and [j.name for j in await b.jobs()] == ["theirs"]
    finally:
        await other.tear_down()
