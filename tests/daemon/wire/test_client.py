"""The client where the wire loses things: dropped messages, a daemon that restarts, requests that must be repeated."""

import asyncio
import os
import shutil
import signal
import threading
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from daemon.errors import NotAnswering
from daemon.wire import protocol as wire
from daemon.wire.blocking import ping
from daemon.wire.client import BegunAnew, Client
from daemon.wire.paths import daemon_paths, endpoint, make_private
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
    async with box.client(timeout=2.0, retries=9) as client:
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


async def until_step(items, step: int) -> list[Event | BegunAnew]:
    """What a follower sees up to a step."""
    seen = []
    async for item in items:
        if isinstance(item, Event | BegunAnew):
            seen.append(item)
        if isinstance(item, Event) and item.kind == "step" and item.data["step"] == step:
            return seen
    raise AssertionError("a follow never ends by itself")


async def test_a_run_that_begins_anew_is_followed_from_its_first_event(box: Box):
    """Its folder was emptied between two attempts: the numbers of its events begin at 1 again."""
    box.start("--hold-at", "15")
    async with box.client() as client, box.client() as late:
        job = (await client.submit(box.job("one", steps=20))).id
        items = client.follow(job)
        before = await asyncio.wait_for(until_step(items, 15), PATIENCE)
        await client.stop(job)
        await box.wait(client, job, "stopped")
        shutil.rmtree(box.run_dir("one"))
        await client.resume(job)
        after = await asyncio.wait_for(until_step(items, 15), PATIENCE)
        begun = next(i for i, item in enumerate(after) if isinstance(item, BegunAnew))
        assert [e.seq for e in after[begun + 1 :]] == list(range(1, len(after) - begun))
        assert {e.run for e in after[:begun]} <= {before[0].run} and after[-1].run != before[0].run
        assert after[begun + 1 :] == file_events(box.run_dir("one"))
        # who knows an event of the run before, with its id or without, is told as well
        for last in (before[-1].seq, before[-1].seq + 1000):
            first = await anext(late.follow(job, last, before[0].run))
            assert first == BegunAnew(job)
        # and a new run that is not longer than the old one ends well
        await client.stop(job)
        assert (await box.wait(client, job, "stopped")).attempt >= 1


async def test_a_shorter_run_in_the_emptied_folder_is_done(box: Box):
    box.start("--hold-at", "15")
    async with box.client() as client:
        job = (await client.submit(box.job("one", steps=20))).id
        await box.wait(client, job, "running")
        await asyncio.wait_for(until_step(client.follow(job), 15), PATIENCE)
        await client.stop(job)
        await box.wait(client, job, "stopped")
        shutil.rmtree(box.run_dir("one"))
        box.job("one", steps=2)
        await client.resume(job)
        assert (await box.wait(client, job)).state == "done"


async def test_an_answer_that_came_while_the_client_slept_is_taken(box: Box):
    box.start()
    async with box.client(retries=0) as client:
        answered, client._timeout = client._dealer, -1.0  # the time is over when it looks, as after a sleep

        class Slept:
            async def send(self, data: bytes) -> None:
                await answered.send(data)
                assert await answered.poll(1000 * PATIENCE)

            def __getattr__(self, name: str) -> object:
                return getattr(answered, name)

        client._dealer = Slept()
        assert await client.jobs() == []


def answer_others(folder: Path, over: threading.Event) -> None:
    """Give whoever asks answers to other requests, without end."""
    where = daemon_paths(folder)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as daemon:
        daemon.setsockopt(zmq.LINGER, 0)
        daemon.bind(endpoint(where.control))
        asker = b""
        while not over.is_set():
            if daemon.poll(0 if asker else 20):
                asker, _ = daemon.recv_multipart()
            elif asker:
                daemon.send_multipart([asker, wire.encode(wire.Reply(id="another", answer=wire.Done()))])


async def test_answers_to_others_without_end_are_no_answer(short_dir: Path):
    make_private(daemon_paths(short_dir).runtime)
    over = threading.Event()
    talker = threading.Thread(target=answer_others, args=(short_dir, over))
    talker.start()
    try:
        await until(daemon_paths(short_dir).control.exists)
        with pytest.raises(NotAnswering):
            ping(short_dir, timeout=0.1)
        with pytest.raises(NotAnswering):
            async with Client(short_dir, timeout=0.1, retries=0):
                pass
    finally:
        over.set()
        talker.join()
