"""Clients that want the daemon to fall or to swell: it stays small, and serves the others meanwhile and afterwards.

The long form is tests/hostile.py's own."""

import asyncio
import random
import resource
from contextlib import suppress
from pathlib import Path

import pytest

from daemon.errors import RequestRefused
from daemon.wire.blocking import ping
from daemon.wire.paths import daemon_paths
from daemon.wire.protocol import Beat, Jobs, Request, Welcome, encode
from daemon.wire.stop import stop_daemon
from daemon.zmtp.frames import GREETING, MORE, frame
from tests.daemon.conftest import Box, until
from tests.helpers.waiting import PATIENCE
from tests.helpers.waiting import until as until_blocking
from tests.hostile import ATTACKS, MOST_RSS, Raw, fuzz, memory, under_attack

FEW = 64  # open files


async def test_whatever_clients_do_it_stays_small_and_serves_the_others(box: Box):
    pid = box.start("--hold-at", "5")
    async with box.client(timeout=PATIENCE) as before:
        await before.submit(box.job("one"))
        await box.wait(before, "one", "running")
        feed = before.feed()
        for name in ATTACKS:
            with under_attack(box.dir, name):
                for _ in range(3):
                    assert [j.state for j in await before.jobs()] == ["running"], name
                    await asyncio.sleep(0.02)
            assert memory(pid, "VmHWM") < MOST_RSS, name
        while not isinstance(await asyncio.wait_for(anext(feed), PATIENCE), Beat):  # who was there stays in the feed
            pass
        await feed.aclose()
    await until(lambda: _answers(box.dir))
    assert "Traceback" not in box.log() and len(box.log().splitlines()) < 200


def _answers(dir: Path) -> bool:
    with suppress(RequestRefused):
        return bool(ping(dir).pid)
    return False


async def test_fuzzed_requests_leave_nothing_behind(box: Box):
    pid = box.start()
    await asyncio.to_thread(fuzz, box.dir, 25_000, 1)  # by then it has collected its garbage a few times
    before = memory(pid)
    await asyncio.to_thread(fuzz, box.dir, 15_000, 2)
    assert memory(pid) - before < 2.5 * 2**20
    assert "Traceback" not in box.log()


def limited(box: Box, most: int) -> Box:
    """Its daemon may have so many files open."""
    box.program = [
        "-c",
        f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}));"
        " sys.argv[0] = 'daemon'; runpy.run_module('daemon', run_name='__main__', alter_sys=True)",
    ]
    return box


def take_all_places(control: Path, held: list[Raw]) -> None:
    """Of a daemon that may have FEW files open: only when all are ours can nobody leave one."""
    while len(held) < 8:
        held.append(until_blocking(lambda: _place(control), "a place"))


def _place(control: Path) -> Raw | None:
    """A connection that the daemon serves; None when it was one too many."""
    with suppress(OSError):
        raw = Raw(control, "DEALER")
        with suppress(OSError):
            raw.send(frame(encode(Request(id="j", command=Jobs()))))
            if b"takes no more" not in raw.take()[1]:
                return raw
        raw.close()
    return None


async def test_more_clients_than_it_can_take_are_told_so_and_the_others_go_on(box: Box):
    limited(box, FEW).start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one", "running")
        control, held = daemon_paths(box.dir).control, []
        try:
            with pytest.raises(RequestRefused, match="has 8 clients already, and takes no more") as refused:
                for _ in range(FEW):
                    held.append(await asyncio.to_thread(Raw, control, "DEALER"))
                    await asyncio.to_thread(ping, box.dir)
            assert "Close dashboards" in refused.value.fix
            held += [_connected(control) for _ in range(2 * FEW)]  # more than there could be descriptors
            await client.submit(box.job("two", gpus=[1]))  # which opens files, and starts a process
            await box.wait(client, "two", "running")
            await client.stop("two")
            await box.wait(client, "two", "stopped")
        finally:
            for raw in held:
                raw.close()
        await until(lambda: _answers(box.dir))
        assert (await client.show("one")).state == "running"
    assert "Traceback" not in box.log()


async def test_a_thousand_clients_have_room(box: Box):
    box.start()
    assert box.process is not None
    where, held = daemon_paths(box.dir), []
    try:
        for path, kind in ((where.control, "DEALER"), (where.feed, "SUB")):
            for _ in range(1010):
                held.append(Raw(path, kind))
        async with box.client(timeout=PATIENCE) as client:
            assert await client.jobs() == []
            feed = client.feed()
            assert isinstance(await asyncio.wait_for(anext(feed), PATIENCE), Welcome)
            await feed.aclose()
        assert memory(box.process.pid) < 80 * 2**20
    finally:
        for raw in held:
            raw.close()
    assert "one too many" not in box.log() and "another one was refused" not in box.log()


async def test_who_asks_is_told_although_silent_ones_hold_all_places(box: Box):
    limited(box, FEW).start()
    where = daemon_paths(box.dir)
    held: list[Raw] = []
    try:
        await asyncio.to_thread(take_all_places, where.control, held)
        held += [Raw(where.feed, "SUB") for _ in range(8)]
        for _ in range(FEW):
            held += [Raw(where.control, "", hello=False), Raw(where.feed, "", hello=False)]
        last = held[-1]
        data = b""
        while piece := last.socket.recv(1000):
            data += piece
        assert data.startswith(GREETING) and b"ERROR" in data and b"connections are taken" in data
        for _ in range(3):
            held += [Raw(where.control, "", hello=False) for _ in range(8)]
            with pytest.raises(RequestRefused, match="has 8 clients already, and takes no more"):
                await asyncio.to_thread(ping, box.dir)
    finally:
        for raw in held:
            raw.close()


async def test_a_subscriber_too_many_is_told_so(box: Box):
    limited(box, FEW).start()
    held = []
    try:
        async with box.client() as client:
            with pytest.raises(RequestRefused, match="has 8 clients already, and takes no more"):
                for _ in range(FEW):
                    feed = client.feed()
                    held.append(feed)
                    assert isinstance(await asyncio.wait_for(anext(feed), PATIENCE), Welcome)
    finally:
        for feed in held:
            await feed.aclose()
    assert 6 <= len(held) <= 9  # one that is just coming in may count twice, others may not have gone yet


def _connected(control: Path) -> Raw:
    return Raw(control, "", hello=False)


async def test_a_daemon_that_takes_no_more_clients_can_be_ended(box: Box):
    limited(box, FEW).start()
    held: list[Raw] = []
    try:
        await asyncio.to_thread(take_all_places, daemon_paths(box.dir).control, held)
        done = await asyncio.to_thread(stop_daemon, box.dir)
        assert done.ended and done.ran and "sent SIGTERM" in done.text
    finally:
        for raw in held:
            raw.close()


async def test_the_daemon_raises_its_limit_of_open_files_and_trainers_have_the_old_one(box: Box):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = min(500, hard - 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        pid = box.start("--hold-at", "5")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)
    async with box.client() as client:
        await client.submit(box.job("one"))
        trainer = (await box.wait(client, "one", "running")).pid
        assert resource.prlimit(trainer, resource.RLIMIT_NOFILE) == (few, hard)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"\x01\x00",  # ZMTP 1.0
        b"\xff" + bytes(8) + b"\x7f\x01\x00" + bytes(52),  # 2.0
        b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"PLAIN".ljust(20, b"\0") + bytes(32),
        b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32),
        b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32) + frame(b"early"),
        random.Random(1).randbytes(200),
    ],
    ids=["http", "zmtp-1", "zmtp-2", "plain", "curve", "early", "noise"],  # alike in every process that collects them
)
async def test_who_speaks_something_else_is_cut_off(box: Box, data: bytes):
    box.start()
    for path in (daemon_paths(box.dir).control, daemon_paths(box.dir).feed):
        raw = Raw(path, "", hello=False)
        raw.send(data)
        with pytest.raises(OSError):
            while True:
                await asyncio.to_thread(raw._more)
        raw.close()
    assert ping(box.dir).pid


async def test_a_message_of_many_frames_is_cut_off_and_one_of_a_few_is_answered(box: Box):
    box.start()
    raw = Raw(daemon_paths(box.dir).control, "DEALER")
    raw.send(frame(b"a", MORE) * 15 + frame(b"b") + frame(encode(Request(id="j", command=Jobs()))))
    for _ in range(2):
        assert (await asyncio.to_thread(raw.take))[0] == 0
    raw.send(frame(b"a", MORE) * 17)
    with pytest.raises(OSError):
        await asyncio.to_thread(raw.take)
    raw.close()
