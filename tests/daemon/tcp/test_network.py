"""A daemon that other machines reach: encrypted, for the clients that are allowed, or not at all. All of it on
loopback."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import zmq

from daemon.errors import DaemonError, RequestRefused
from daemon.jobs.requests import FROM_NETWORK
from daemon.settings import SETTINGS_FILE
from daemon.wire import protocol as wire
from daemon.wire.blocking import ping
from daemon.wire.client import Client
from daemon.wire.keys import (
    ALLOWED,
    CLIENT,
    SERVER,
    KeyPair,
    allow_client,
    make_keys,
    read_pair,
    revoke_client,
    trust_daemon,
)
from daemon.wire.network import reached
from daemon.wire.paths import daemon_paths
from presets.errors import UserError
from tests.daemon.conftest import Box, until
from tests.helpers import ROOT
from tests.helpers.ports import free_port
from tests.helpers.waiting import PATIENCE


class Far:
    """A daemon with an address, and a laptop whose key it knows."""

    def __init__(self, box: Box) -> None:
        self.box, self.port = box, free_port(1)
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.there, self.laptop = daemon_paths(box.dir), box.dir / "laptop"
        self.here = daemon_paths(self.laptop)
        make_keys(self.there)
        make_keys(self.here)
        self.server, self.client = read_pair(self.there.keys / SERVER), read_pair(self.here.keys / CLIENT)
        trust_daemon(self.here, self.address, self.server.public)
        self.settings()

    def settings(self, *, roots: list[str] | None = None, listen: bool = True) -> None:
        text = f'[tcp]\nlisten = "127.0.0.1:{self.port}"\n' if listen else ""
        (self.box.dir / SETTINGS_FILE).write_text(text + (f"[daemon]\nroots = {roots}\n" if roots else ""))

    def is_open(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
async def far(box: Box) -> AsyncIterator[Far]:
    far = Far(box)
    allow_client(far.there, far.client.public, "laptop")
    box.start("--hold-at", "5")
    yield far


@contextmanager
def dealer(port: int, server: bytes | None = None, client: KeyPair | None = None) -> Iterator[zmq.Socket]:
    context = zmq.Context()
    sock = context.socket(zmq.DEALER)
    if server is not None and client is not None:
        sock.setsockopt(zmq.CURVE_SERVERKEY, server)
        sock.setsockopt(zmq.CURVE_PUBLICKEY, client.bytes[0])
        sock.setsockopt(zmq.CURVE_SECRETKEY, client.bytes[1])
    try:
        sock.connect(f"tcp://127.0.0.1:{port}")
        yield sock
    finally:
        context.destroy(linger=0)


FLOOD = """
import time, zmq
sock = zmq.Context().socket(zmq.DEALER)
sock.curve_serverkey, sock.curve_publickey, sock.curve_secretkey = {1}, {2}, {3}
sock.connect("tcp://127.0.0.1:{0}")
for _ in range(20_000):
    sock.send(b"", zmq.SNDMORE)
sock.send(b"")
time.sleep(600)
"""
HELLO = wire.encode(wire.Request(id="h", command=wire.Hello(wire.PROTOCOL_VERSION)))


async def test_a_client_that_is_allowed_works_as_at_home(far: Far):
    far.settings(roots=[str(far.box.dir / "jobs")])
    with reached(far.address, far.laptop) as folder:
        async with Client(folder) as client:
            record = await client.submit(far.box.job("one"))
            await far.box.wait(client, "one", "running")
            steps = []
            async for message in client.follow("one"):
                if isinstance(message, wire.Event):
                    steps.append(message.seq)
                    if len(steps) >= 3:
                        break
            assert steps == [1, 2, 3]
            assert (await client.snapshot(record.id))[0].name == "one"
            await client.stop("one")
            await far.box.wait(client, "one", "stopped")
    assert not folder.exists() and "laptop connects from the network" in far.box.log()


async def test_a_big_answer_comes_whole(far: Far):
    with reached(far.address, far.laptop) as folder:
        async with far.box.client() as near, Client(folder) as client:
            for n in range(40):
                await near.submit(far.box.job(f"job{n:02}" + "x" * 50), hold=True)
            assert [j.id for j in await client.jobs()] == list(range(1, 41))


async def test_paths_from_the_network_need_declared_roots(far: Far):
    with reached(far.address, far.laptop) as folder:
        async with Client(folder) as client, far.box.client() as near:
            with pytest.raises(RequestRefused, match="may name no path here"):
                await client.submit(far.box.job("one"))
            far.settings(roots=[str(far.box.dir / "elsewhere")])
            with pytest.raises(RequestRefused, match="lies outside the folders"):
                await client.submit(far.box.job("one"))
            far.settings()
            await near.submit(far.box.job("one"))  # of this machine's own there is no such demand
            await far.box.wait(near, "one", "running")
            await near.stop("one")
            await far.box.wait(near, "one", "stopped")
            with pytest.raises(RequestRefused, match="may name no path here"):
                await client.resume("one")


async def test_settings_of_another_machines_shell_are_refused(far: Far):
    from presets.machine.shell import Shell

    request = wire.Request(
        id="s", command=wire.Submit(str(far.box.job("one")), shell=Shell(settings={"HF_ENDPOINT": "http://evil"}))
    )
    with dealer(far.port, far.server.bytes[0], far.client) as sock:
        sock.send(wire.encode(request))
        assert await asyncio.to_thread(sock.poll, 1000 * PATIENCE)
        answer = wire.reply_decoder.decode(sock.recv()).answer
    assert isinstance(answer, wire.Refused) and "cannot give a job its shell" in answer.what


async def test_who_is_not_allowed_gets_no_answer(far: Far, short_dir: Path):
    """Plain, password, another key than ours, another client than the allowed one: each beside one that is answered."""
    stranger = daemon_paths(short_dir / "stranger")
    make_keys(stranger)
    theirs = read_pair(stranger.keys / CLIENT)
    with (
        dealer(far.port) as plain,
        dealer(far.port, far.server.bytes[0], theirs) as unknown,
        dealer(far.port, theirs.bytes[0], far.client) as wrong,
        dealer(far.port, far.server.bytes[0], far.client) as good,
    ):
        password = plain.context.socket(zmq.DEALER)
        password.plain_username, password.plain_password = b"laptop", b"x"
        password.connect(far.address)
        subscriber = plain.context.socket(zmq.SUB)
        subscriber.subscribe(b"")
        subscriber.connect(f"tcp://127.0.0.1:{far.port + 1}")
        bad = (plain, password, unknown, wrong)
        for sock in bad:
            with suppress(zmq.Again):  # it may have been shown out by now
                sock.send(HELLO, zmq.NOBLOCK)
        good.send(HELLO)
        for _ in range(3):
            assert await asyncio.to_thread(good.poll, 1000 * PATIENCE)
            assert isinstance(wire.reply_decoder.decode(good.recv()).answer, wire.HelloReply)
            good.send(HELLO)
        await asyncio.to_thread(good.poll, 2000)
        await until(lambda: f"a client with the key {theirs.public} wanted to connect" in far.box.log())
        assert not any(sock.poll(0) for sock in (*bad, subscriber))


async def test_a_client_is_told_what_is_in_its_way(far: Far, short_dir: Path):
    other = short_dir / "other"
    with pytest.raises(UserError, match="the key of the daemon there is not known"), reached(far.address, other):
        pass
    make_keys(daemon_paths(other))
    trust_daemon(daemon_paths(other), far.address, far.server.public)
    with pytest.raises(DaemonError, match="does not allow this user's key") as told, reached(far.address, other):
        pass
    assert read_pair(daemon_paths(other).keys / CLIENT).public in told.value.fix
    trust_daemon(far.here, far.address, far.client.public)  # as if somebody else stood in between
    with pytest.raises(DaemonError, match="does not have the key that was pinned"), reached(far.address, far.laptop):
        pass
    port = free_port(1)
    trust_daemon(far.here, f"tcp://127.0.0.1:{port}", far.server.public)
    with (
        pytest.raises(DaemonError, match="nobody listens there"),
        reached(f"tcp://127.0.0.1:{port}", far.laptop),
    ):
        pass


async def test_a_revoked_client_is_cut_off_and_the_last_one_closes_the_way(far: Far):
    second = daemon_paths(far.box.dir / "second")
    make_keys(second)
    key = read_pair(second.keys / CLIENT)
    allow_client(far.there, key.public, "second")

    def answered(pair: KeyPair) -> bool:
        with dealer(far.port, far.server.bytes[0], pair) as sock, suppress(zmq.Again):  # shown out by now
            sock.send(HELLO, zmq.NOBLOCK)
            return bool(sock.poll(1000))
        return False

    for pair in (far.client, key):  # the new one is known soon
        await until(lambda pair=pair: asyncio.to_thread(answered, pair))
    with dealer(far.port, far.server.bytes[0], far.client) as mine:
        mine.send(HELLO)
        assert await asyncio.to_thread(mine.poll, 1000 * PATIENCE)
        mine.recv()
        revoke_client(far.there, "laptop")
        await until(lambda: f"the key {far.client.public} wanted to connect" in far.box.log())  # it came back by itself
        await until(lambda: asyncio.to_thread(answered, key))
        assert not mine.poll(0) and not await asyncio.to_thread(answered, far.client)
    revoke_client(far.there, "second")
    await until(lambda: not far.is_open())
    assert "no client is allowed" in far.box.log() and ping(far.box.dir).pid
    allow_client(far.there, far.client.public)
    await until(far.is_open)
    for listen in (False, True):
        far.settings(listen=listen)
        await until(lambda listen=listen: far.is_open() == listen)


async def test_an_allow_list_that_others_can_write_closes_the_way(far: Far):
    (far.there.keys / ALLOWED).chmod(0o666)
    await until(lambda: not far.is_open())
    assert "it is not used" in far.box.log() and ping(far.box.dir).pid


class Tap:
    """Stands between client and daemon, one port after the other, and keeps all that it sees."""

    def __init__(self, to: int) -> None:
        self.port, self.seen, self._end = free_port(1), bytearray(), False
        self._listeners = []
        for n in range(2):
            listener = socket.create_server(("127.0.0.1", self.port + n))
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener, to + n), daemon=True).start()

    def _accept(self, listener: socket.socket, to: int) -> None:
        while True:
            try:
                here, _ = listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", to))
            for a, b in ((here, there), (there, here)):
                threading.Thread(target=self._copy, args=(a, b), daemon=True).start()

    def _copy(self, a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                self.seen += data
                b.sendall(data)
        except OSError:
            pass
        for one in (a, b):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        a.close()  # and `b` by who reads that: its number may be another file's by then

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)  # closed alone, it would be waited at for ever
            listener.close()


async def test_nothing_of_a_job_is_readable_on_the_line(far: Far):
    tap = Tap(far.port)
    address = f"tcp://127.0.0.1:{tap.port}"
    trust_daemon(far.here, address, far.server.public)
    try:
        with reached(address, far.laptop) as folder:
            async with far.box.client() as near, Client(folder) as client:
                await near.submit(far.box.job("secretname"))
                await far.box.wait(client, "secretname", "running")
                async for message in client.follow("secretname"):
                    if isinstance(message, wire.Event):
                        break
                assert b"secretname" in wire.encode(await client.jobs())
    finally:
        tap.close()
    assert len(tap.seen) > 2000
    for word in (b"secretname", b"JobReply", b"Snapshot", b"HelloReply", str(far.box.dir).encode()):
        assert word not in tap.seen
    for pair in (far.server, far.client):
        assert not any(part in tap.seen for part in (pair.bytes[1], pair.secret.encode()))


@pytest.mark.parametrize(
    ("lacking", "said"),
    [("keys", "there is no such key"), ("clients", "no client is allowed"), ("address", "is not an address")],
)
async def test_without_keys_or_clients_the_daemon_refuses_to_start(box: Box, lacking: str, said: str):
    far = Far(box)
    if lacking == "keys":
        (far.there.keys / SERVER).unlink()
        allow_client(far.there, far.client.public)
    if lacking == "address":
        allow_client(far.there, far.client.public)
        (box.dir / SETTINGS_FILE).write_text('[tcp]\nlisten = "everywhere"\n')
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "daemon", "--dir", str(box.dir)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,
    )
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    assert not far.is_open()


async def test_floods_from_the_network_are_cut_off(far: Far):
    from tests.hostile import MOST_RSS, memory

    async with far.box.client() as near:
        pid = (await near.hello()).pid
        context = zmq.Context()
        try:
            sub = context.socket(zmq.SUB)
            sub.curve_serverkey, sub.curve_publickey, sub.curve_secretkey = far.server.bytes[0], *far.client.bytes
            sub.connect(f"tcp://127.0.0.1:{far.port + 1}")
            for n in range(20_000):
                sub.subscribe(f"topic {n}")
            # by a process of its own: libzmq may abort it, cut off in the midst of a message
            keys = [repr(key) for key in (far.server.bytes[0], *far.client.bytes)]
            command = [sys.executable, "-c", FLOOD.format(far.port, *keys)]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as flood:
                await until(lambda: "cut off: too many frames" in far.box.log())
                flood.kill()
            mutes = [socket.create_connection(("127.0.0.1", far.port)) for _ in range(200)]
            await near.hello()
            for mute in mutes:
                mute.close()
        finally:
            context.destroy(linger=0)
        assert memory(pid, "VmHWM") < MOST_RSS
        with reached(far.address, far.laptop) as folder:
            async with Client(folder) as client:
                assert await client.jobs() == []


def wanlora(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wanlora_tui.cli", *args], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE
    )


async def test_from_nothing_to_a_list_of_jobs_by_commands_alone(box: Box):
    here, there, port = str(box.dir / "laptop"), str(box.dir), free_port(1)
    address = f"tcp://127.0.0.1:{port}"

    async def run(*args: str) -> str:
        done = await asyncio.to_thread(wanlora, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def key(dir: str, whose: str) -> str:
        shown = await run("daemon", "keys", "show", "--dir", dir)
        return next(line.split()[-1] for line in shown.splitlines() if line.startswith(whose))

    for dir in (there, here):
        await run("daemon", "keys", "make", "--dir", dir)
    (box.dir / SETTINGS_FILE).write_text(f'[tcp]\nlisten = "127.0.0.1:{port}"\n')
    await run("daemon", "keys", "allow", await key(here, "you as a client"), "laptop", "--dir", there)
    await run("daemon", "keys", "trust", address, await key(there, "the daemon here"), "--dir", here)
    box.start("--hold-at", "5")
    async with box.client() as near:
        await near.submit(box.job("one"))
    assert "one" in await run("jobs", "--connect", address, "--dir", here)
    refused = await asyncio.to_thread(wanlora, "daemon", "stop", "--connect", address, "--dir", here)
    assert refused.returncode == 1 and "about the machine that it runs on" in refused.stderr
    await run("daemon", "keys", "revoke", "laptop", "--dir", there)
    assert read_pair(daemon_paths(box.dir).keys / SERVER).secret not in await run(
        "daemon", "keys", "show", "--dir", there
    )


def test_whatever_is_added_to_a_job_is_not_for_the_network_until_somebody_says_so():
    """Field by field of what a client can say with a job: those that are let through are known here."""
    given = {f.name for kind in (wire.Submit, wire.Resume) for f in msgspec.structs.fields(kind)}
    assert given >= FROM_NETWORK and "shell" in given - FROM_NETWORK
    assert not [name for name in FROM_NETWORK if name.startswith(("on_", "command", "shell", "env"))]
