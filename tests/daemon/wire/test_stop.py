"""Ending a daemon of any version and in any state, and nobody else."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from daemon.errors import NotAnswering, VersionMismatch
from daemon.wire import protocol as wire
from daemon.wire.blocking import daemon_status, ping
from daemon.wire.paths import daemon_paths
from daemon.wire.start import ensure_running
from daemon.wire.stop import stop_daemon
from tests.daemon.conftest import Box
from tests.daemon.wire.test_protocol import Raw
from tests.helpers import ROOT
from tests.helpers.tiers import thorough
from tests.helpers.waiting import PATIENCE

Scripted = Callable[..., "subprocess.Popen[bytes]"]

LOCKED = """
import os, signal, sys, time, json, fcntl, msgspec, zmq
from pathlib import Path
from daemon.wire.lock import take_lock
from daemon.wire.paths import daemon_paths
where = daemon_paths(Path(sys.argv[1]))
where.runtime.mkdir(parents=True, exist_ok=True)
lock = take_lock(where)
"""
STRICT = """
s = zmq.Context().socket(zmq.ROUTER)
s.bind(f"ipc://{where.control}")
lock.publish(where.runtime)
print(flush=True)
while True:  # as 0.1.0 does it, in another version: what is not said in its own is refused
    client, data = s.recv_multipart()
    asked = msgspec.msgpack.decode(data)
    if asked["version"] != VERSION:
        what = f"this client speaks protocol version {asked['version']}, the daemon version {VERSION}"
        answer = {"type": "Refused", "what": what}
    elif asked["command"]["type"] == "Hello":
        answer = {"type": "HelloReply", "version": VERSION, "epoch": "e", "pid": os.getpid(), "of": "another time"}
    elif asked["command"]["type"] == "Shutdown":
        answer = {"type": "Done"}
    else:
        answer = {"type": "Refused", "what": "no", "why": 1}
    reply = {"version": VERSION, "id": asked["id"], "answer": answer, "more": []}
    s.send_multipart([client, msgspec.msgpack.encode(reply)])
    if answer["type"] == "Done":
        time.sleep(0.1)
        break
"""
PID_ALONE = """
os.ftruncate(lock._descriptor, 0); os.pwrite(lock._descriptor, f"{os.getpid()}\\n".encode(), 0)
lock.tell = lambda runtime: None
"""


@pytest.fixture
def scripted(short_dir: Path) -> Iterator[Scripted]:
    """Start a daemon that is a script, and wait until it says that it is there."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*parts: str) -> "subprocess.Popen[bytes]":
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", "".join(map(textwrap.dedent, parts)), str(short_dir)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
        )
        stdout = started[-1].stdout
        assert stdout is not None and stdout.readline() == b"\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


async def test_it_is_asked_and_trainers_go_on(box: Box):
    pid = box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one", "running")
    done = await asyncio.to_thread(stop_daemon, box.dir)
    assert done.ran and done.ended and done.trainers == 1 and done.text == f"The daemon (pid {pid}) has ended."
    assert box.process.wait(PATIENCE) == 0
    again = await asyncio.to_thread(stop_daemon, box.dir)
    assert not again.ran and again.ended and str(box.dir / "state") in again.text


async def test_one_that_a_signal_holds_is_hung_and_is_ended(box: Box):
    pid = box.start()
    os.kill(pid, signal.SIGSTOP)
    status = await asyncio.to_thread(daemon_status, box.dir, timeout=0.3)
    assert (
        (status.state, status.pid) == ("hung", pid)
        and "stopped by a signal" in str(status.problem)
        and f"kill -CONT {pid}" in str(status.problem)
    )
    with pytest.raises(NotAnswering, match="stopped by a signal"):
        await asyncio.to_thread(ensure_running, box.dir)
    done = await asyncio.to_thread(stop_daemon, box.dir)
    assert done.ended and "SIGTERM and SIGCONT" in done.text
    assert box.process.wait(PATIENCE) == 0  # it has heard the one before the other, and closed everything properly


@pytest.mark.parametrize("version", [wire.PROTOCOL_VERSION - 1, wire.PROTOCOL_VERSION + 1])
def test_one_of_another_version_that_refuses_ours_is_spoken_to_in_its_own(
    short_dir: Path, scripted: Scripted, version: int
):
    process = scripted(LOCKED, f"VERSION = {version}\n", STRICT)
    with pytest.raises(
        VersionMismatch,
        match=f"the daemon speaks protocol version {version}, this client version {wire.PROTOCOL_VERSION}",
    ):
        ensure_running(short_dir)
    status = daemon_status(short_dir, timeout=PATIENCE)
    assert (
        status.state == "answering"
        and status.hello
        and (status.hello.version, status.hello.pid) == (version, process.pid)
        and isinstance(status.problem, VersionMismatch)
    )
    done = stop_daemon(short_dir)
    assert (
        done.ended
        and done.trainers is None
        and f"protocol version {version}" in done.text
        and f"version {wire.PROTOCOL_VERSION}" in done.text
        and "SIG" not in done.text
    )
    assert process.wait(PATIENCE) == 0


def test_one_of_0_1_0_whose_lock_tells_its_pid_alone(short_dir: Path, scripted: Scripted):
    process = scripted(LOCKED, PID_ALONE, f"VERSION = {wire.PROTOCOL_VERSION - 1}\n", STRICT)
    os.kill(process.pid, signal.SIGSTOP)  # and it does not answer either
    status = daemon_status(short_dir, timeout=0.3)
    assert (status.state, status.pid) == ("hung", process.pid) and "stopped by a signal" in str(status.problem)
    assert stop_daemon(short_dir, patience=PATIENCE).ended
    assert process.wait(PATIENCE) == -signal.SIGTERM


def test_one_that_understands_nothing_or_hears_nothing_is_ended_by_signals(short_dir: Path, scripted: Scripted):
    deaf = scripted(
        LOCKED,
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nlock.publish(where.runtime)\nprint(flush=True)\n"
        "time.sleep(1000)",
    )
    assert daemon_status(short_dir, timeout=0.3).state == "hung"
    done = stop_daemon(short_dir, patience=0.3)
    assert (
        done.ended
        and "did not end on SIGTERM, so it was sent SIGKILL" in done.text
        and deaf.wait(PATIENCE) == -signal.SIGKILL
    )
    babel = scripted(
        LOCKED,
        "s = zmq.Context().socket(zmq.ROUTER)\ns.bind(f'ipc://{where.control}')\nlock.publish(where.runtime)\nprint(flush=True)\nwhile"
        " True:\n    s.send_multipart([s.recv_multipart()[0], msgspec.msgpack.encode({'version': 99, 'id': 'x',"
        " 'answer': 7})])",
    )
    done = stop_daemon(short_dir, patience=PATIENCE)
    assert (
        done.ended
        and "protocol version 99" in done.text
        and "SIGTERM" in done.text
        and babel.wait(PATIENCE) == -signal.SIGTERM
    )


def test_no_stranger_is_signalled(short_dir: Path, scripted: Scripted):
    """A lock that names a living process which is not the daemon: it has the pid of one that was killed, or was
    restored from a backup."""
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        where = daemon_paths(short_dir)
        where.state.mkdir()
        where.lock.write_text(f"{stranger.pid}\n")
        assert daemon_status(short_dir).state == "none" and not stop_daemon(short_dir).ran  # held by nobody
        for content in (
            f"{stranger.pid}\n",
            f"{stranger.pid}".ljust(31)
            + f'\n{{"pid": {stranger.pid}, "start": 1, "boot": "another", "runtime": "{where.runtime}"}}\n',
        ):
            where.lock.unlink()
            holds = scripted(
                f"import fcntl, time\nf = open({str(where.lock)!r}, 'w')\nfcntl.flock(f,"
                f" fcntl.LOCK_EX)\nf.write({content!r}); f.flush()\nprint(flush=True)\ntime.sleep(1000)"
            )
            done = stop_daemon(short_dir, patience=0.3)
            assert done.ran and not done.ended and "cannot be ended from here" in done.text
            assert stranger.poll() is None and holds.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_one_that_runs_on_another_machine_with_the_same_home_is_named(short_dir: Path, scripted: Scripted):
    where = daemon_paths(short_dir)
    where.state.mkdir()
    content = (
        "77".ljust(31)
        + f'\n{{"pid": 77, "start": 1, "boot": "another", "host": "node7", "runtime": "{where.runtime}"}}\n'
    )
    scripted(
        f"import fcntl, time\nf = open({str(where.lock)!r}, 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\nf.write({content!r});"
        " f.flush()\nprint(flush=True)\ntime.sleep(1000)"
    )
    status = daemon_status(short_dir)
    assert status.state == "hung" and "runs on node7" in str(status.problem)
    with pytest.raises(NotAnswering, match="runs on node7"):
        ensure_running(short_dir)
    assert not stop_daemon(short_dir).ended


async def raw_answer(box: Box, version: int, command: dict[str, object]) -> dict[str, object]:
    raw = Raw(box)
    try:
        await raw.send(
            msgspec.msgpack.encode({"version": version, "id": "abc", "command": command, "of": "the future"})
        )
        assert await raw.socket.poll(1000 * PATIENCE), "no answer"
        told: dict[str, object] = msgspec.msgpack.decode(await raw.socket.recv())
        return told
    finally:
        raw.close()


@pytest.mark.parametrize("version", [wire.PROTOCOL_VERSION - 1, 10**12, *thorough(wire.PROTOCOL_VERSION + 1)])
async def test_a_client_of_any_version_is_told_who_we_are_and_can_end_us(box: Box, version: int):
    pid = box.start()
    told = await raw_answer(box, version, {"type": "Hello", "version": version, "more": 1})
    assert (told["version"], told["id"]) == (version, "abc")
    assert (
        told["answer"]["type"] == "HelloReply"
        and (told["answer"]["version"], told["answer"]["pid"]) == (wire.PROTOCOL_VERSION, pid)
        and told["answer"]["wanlora"]
    )
    told = await raw_answer(box, version, {"type": "Jobs"})
    assert (
        told["version"] == wire.PROTOCOL_VERSION
        and told["answer"]["type"] == "Refused"
        and f"the daemon version {wire.PROTOCOL_VERSION}" in told["answer"]["what"]
    )
    told = await raw_answer(box, version, {"type": "Shutdown"})
    assert (told["version"], told["answer"]) == (version, {"type": "Done"})
    assert await asyncio.to_thread(box.process.wait, PATIENCE) == 0


def test_one_that_is_still_starting_is_waited_for(short_dir: Path, scripted: Scripted):
    process = scripted(
        LOCKED, "print(flush=True)\ntime.sleep(1)\n", STRICT.replace("VERSION", str(wire.PROTOCOL_VERSION))
    )
    assert daemon_status(short_dir, timeout=PATIENCE).state in ("starting", "answering")
    assert ensure_running(short_dir) is False and ping(short_dir).pid == process.pid
