"""Frames, versions and damage on the real sockets: whatever comes in, the daemon answers and stays."""

import asyncio
import os
import pickle
import random
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from daemon.errors import NotRunning, VersionMismatch
from daemon.wire import protocol as wire
from daemon.wire.blocking import ping
from daemon.wire.client import Client
from daemon.wire.paths import daemon_paths, endpoint
from tests.daemon.conftest import Box
from tests.helpers.waiting import PATIENCE

REQUEST = wire.Request(id="1", command=wire.Jobs())


class Raw:
    """A client without manners."""

    def __init__(self, box: Box) -> None:
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(endpoint(daemon_paths(box.dir).control))

    async def send(self, *frames: bytes) -> None:
        await self.socket.send_multipart(list(frames))

    async def ask(self, *frames: bytes) -> wire.Reply:
        await self.send(*frames)
        assert await self.socket.poll(1000 * PATIENCE), "no answer"
        return wire.reply_decoder.decode(await self.socket.recv())

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
async def raw(box: Box):
    box.start("--hold-at", "5")
    raw = Raw(box)
    yield raw
    raw.close()


def versioned(version: Any) -> bytes:
    return msgspec.msgpack.encode(
        {"version": version, "id": "abc", "command": {"type": "Teleport", "from": "the future"}}
    )


@pytest.mark.parametrize(
    ("version", "who"),
    [
        (0, "this client: upgrade wanlora there"),
        (wire.PROTOCOL_VERSION + 1, "the daemon: upgrade wanlora where it runs"),
        (10**15, "the daemon: upgrade"),
    ],
)
async def test_a_client_of_another_version_is_told_which_side_to_upgrade(raw: Raw, version, who):
    reply = await raw.ask(versioned(version))
    assert (reply.version, reply.id) == (wire.PROTOCOL_VERSION, "abc") and isinstance(reply.answer, wire.Refused)
    assert (
        f"this client speaks protocol version {version}, the daemon version {wire.PROTOCOL_VERSION}"
        in reply.answer.what
        and who in reply.answer.fix
    )


@pytest.mark.parametrize(
    ("version", "who"),
    [
        (0, "The older one is the daemon"),
        (wire.PROTOCOL_VERSION + 1, "The older one is this side: upgrade wanlora here"),
    ],
)
async def test_a_daemon_of_another_version_is_told_apart(short_dir, version, who):
    where = daemon_paths(short_dir)
    where.runtime.mkdir(parents=True)
    answer = msgspec.msgpack.encode({"version": version, "id": "x", "answer": {"type": "Unheard of"}})
    script = (
        f"import zmq\ns = zmq.Context().socket(zmq.ROUTER)\ns.bind('ipc://{where.control}')\nprint(flush=True)\nwhile"
        f" True:\n    s.send_multipart([s.recv_multipart()[0], {answer!r}])"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(
            VersionMismatch,
            match=f"the daemon speaks protocol version {version}, this client version {wire.PROTOCOL_VERSION}",
        ) as mismatch:
            async with Client(short_dir):
                pass
        assert who in mismatch.value.fix
        with pytest.raises(VersionMismatch):
            ping(short_dir)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


GARBAGE = {
    "nothing": [b""],
    "no frame but many": [b"", b"", b""],
    "text": [b"GET / HTTP/1.1\r\n\r\n"],
    "pickle": [pickle.dumps(REQUEST.id)],
    "a dangerous pickle": [b"cos\nsystem\n(S'touch /tmp/wanlora-was-here'\ntR."],
    "a list": [msgspec.msgpack.encode([1, 2])],
    "no command": [msgspec.msgpack.encode({"version": wire.PROTOCOL_VERSION, "id": "x"})],
    "an unknown command": [versioned(wire.PROTOCOL_VERSION)],
    "version as text": [versioned("1")],
    "deep nesting": [b"\x82\xa7version" + bytes([wire.PROTOCOL_VERSION]) + b"\xa1x" + b"\x91" * 200_000],
    "not UTF-8": [b"\x81\xa2id\xa1\xff"],
    "two frames": [wire.encode(REQUEST)[:5], wire.encode(REQUEST)[5:]],
    "no id": [wire.encode(wire.Request(id="", command=wire.Jobs()))],
    "a huge id": [wire.encode(wire.Request(id="x" * 100_000, command=wire.Jobs()))],
    "a null byte": [wire.encode(wire.Request(id="n", command=wire.Submit("/a\0b")))],
    "a relative path": [wire.encode(wire.Request(id="n", command=wire.Submit("job.toml")))],
    "a directory": [wire.encode(wire.Request(id="n", command=wire.Submit("/tmp")))],
    "an endless name": [wire.encode(wire.Request(id="n", command=wire.Stop("9" * 10_000)))],
}


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_refused_and_hurts_nobody(raw: Raw, box: Box, frames):
    reply = await raw.ask(*frames)
    assert isinstance(reply.answer, wire.Refused) and reply.answer.what
    assert "Traceback" not in box.log()
    assert isinstance((await raw.ask(wire.encode(REQUEST))).answer, wire.JobsReply)


async def test_a_thousand_mutilated_requests(raw: Raw, box: Box):
    rng = random.Random(7)
    whole = [
        wire.encode(wire.Request(id=f"r{n}", command=c))
        for n, c in enumerate(
            [
                wire.Jobs(),
                wire.Snapshot("1"),
                wire.Replay("1", 3),
                wire.Stop("x"),
                wire.Hello(1),
                wire.Set("x", "training.lr", "1"),
                wire.Resume("x", 3, "0f"),
            ]
        )
    ]
    for _ in range(1000):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        await raw.ask(bytes(data[: rng.randint(0, len(data))]) if rng.random() < 0.3 else bytes(data))
    async with box.client() as client:
        assert await client.jobs() == []
    assert "Traceback" not in box.log()


async def test_an_oversize_frame_costs_only_its_sender(raw: Raw, box: Box):
    async with box.client() as client:
        await raw.send(b"x" * (wire.MAX_REQUEST_BYTES + 1))
        assert await client.jobs() == []
    reply = await raw.ask(wire.encode(REQUEST))  # the first answer: to the frame there was none, its sender was cut off
    assert (reply.id, reply.answer) == (REQUEST.id, wire.JobsReply([]))


async def test_each_subscriber_is_welcomed_with_the_epoch(raw: Raw, box: Box):
    async with box.client() as a, box.client() as b:
        epoch = (await a.hello()).epoch
        feeds = [a.feed(), b.feed()]
        for feed in feeds:  # the second subscribes to what the first has subscribed to already
            async with asyncio.timeout(PATIENCE):
                while not isinstance(message := await anext(feed), wire.Welcome):
                    assert isinstance(message, wire.Beat)
            assert message.epoch == epoch
        for feed in feeds:
            await feed.aclose()


async def test_rubbish_on_the_feed_socket_is_ignored(raw: Raw, box: Box):
    loud = raw.context.socket(zmq.XSUB)
    loud.connect(endpoint(daemon_paths(box.dir).feed))
    for rubbish in (b"", b"\x01", b"\x00", b"\x02", b"\x01" + b"x" * 5000, b"x" * 100_000, pickle.dumps([])):
        await loud.send(rubbish)
    async with box.client() as client:
        async for message in client.feed():
            assert isinstance(message, (wire.Welcome, wire.Beat))
            if isinstance(message, wire.Beat):
                break


async def test_the_same_request_id_acts_once_even_for_another_daemon(raw: Raw, box: Box):
    request = wire.encode(wire.Request(id=uuid.uuid4().hex, command=wire.Submit(str(box.job("one")))))
    first = await raw.ask(request)
    assert await raw.ask(request) == first
    box.kill9()
    box.start()
    assert await raw.ask(request) == first
    async with box.client() as client:
        assert [j.id for j in await client.jobs()] == [1]
        await box.wait(client, "one", "running")
        stop = wire.encode(wire.Request(id="stop", command=wire.Stop("one")))
        told = await raw.ask(stop)
        await box.wait(client, "one", "stopped")
        await client.resume("one")
        await box.wait(client, "one", "running", "done")
        assert await raw.ask(stop) == told  # remembered, not done again
        assert (await client.show("one")).state in ("running", "done")


async def test_the_sockets_are_private(raw: Raw, box: Box):
    where = daemon_paths(box.dir)
    assert where.runtime.stat().st_mode & 0o777 == 0o700 and where.state.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (where.control, where.feed)} == {0o600}


async def test_nothing_listens_on_the_network(raw: Raw, box: Box):
    facts = Path(f"/proc/{box.process.pid}")
    sockets = {str(fd.readlink()) for fd in (facts / "fd").iterdir() if fd.is_symlink()}
    assert any(s.startswith("socket:") for s in sockets)
    for table in ("tcp", "tcp6", "udp", "udp6"):
        rows = (facts / "net" / table).read_text().splitlines()[1:]
        assert not [row for row in rows if f"socket:[{row.split()[9]}]" in sockets]


async def test_a_second_daemon_is_refused_and_names_the_first(raw: Raw, box: Box):
    second = subprocess.run(
        [sys.executable, "-m", "daemon", "--dir", str(box.dir)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (
        second.returncode == 1
        and f"another daemon (pid {box.process.pid}) already serves this directory" in second.stderr
    )
    assert "Traceback" not in second.stderr
    third = subprocess.run(
        [sys.executable, "-m", "daemon", "--dir", "/tmp/" + "x" * 100], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (
        third.returncode == 1 and "a socket path may have 107 bytes" in third.stderr and "Traceback" not in third.stderr
    )
    assert (await raw.ask(wire.encode(REQUEST))).answer == wire.JobsReply([])


async def test_a_daemon_that_does_not_answer_is_given_up(box: Box):
    pid = box.start()
    async with box.client(retries=2) as client:
        client._timeout, usual = 0.2, client._timeout
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(NotRunning, match="has not answered"):
                await client.jobs()
        finally:
            os.kill(pid, signal.SIGCONT)
        client._timeout = usual
        assert await client.jobs() == []
