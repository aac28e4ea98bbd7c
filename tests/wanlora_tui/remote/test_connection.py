"""One connection to another machine, over a real sshd: what it brings, and how it comes back."""

import asyncio
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.errors import DaemonError
from daemon.wire.blocking import ping
from daemon.wire.client import Client
from daemon.wire.stop import stop_daemon
from presets.errors import UserError
from tests.helpers.interface.harness import running_daemon, write_job
from tests.helpers.sshd import ALIAS, OtherMachine, needs_sshd
from tests.helpers.waiting import PATIENCE, until
from wanlora_tui.remote.connection import Connection, LineLost, connected
from wanlora_tui.remote.far_shell import running

pytestmark = needs_sshd


async def submitted(folder: Path, job_file: Path) -> None:
    async with Client(folder) as client:
        await client.submit(job_file)


async def seen_of(folder: Path, job: str) -> list[str]:
    """What comes of a job until there has been an event and a beat."""
    async with Client(folder, here=False) as client:
        kinds: list[str] = []
        async for item in client.follow(job):
            kinds.append(type(item).__name__)
            if "Beat" in kinds and "Event" in kinds:
                break
        return kinds


def test_an_alias_brings_a_daemon_here(there: OtherMachine, state: Path, tmp_path: Path):
    asyncio.run(submitted(there.daemon_dir, write_job(tmp_path, "far_v1", steps=30)))
    with connected(ALIAS, state) as line:
        assert stat.S_IMODE(line.folder.stat().st_mode) == 0o700 and not line.has_started
        assert line.state.kind == "connected" and line.status.version
        assert "Event" in asyncio.run(seen_of(line.folder, "far_v1"))
    assert not line.folder.exists()


@pytest.fixture
def line(there: OtherMachine, state: Path) -> Iterator[Connection]:
    with connected(ALIAS, state) as line:
        yield line


@pytest.fixture
def alone(lonely: OtherMachine, state: Path) -> Iterator[Connection]:
    """To a machine where no daemon ran."""
    with connected(ALIAS, state) as line:
        yield line


def test_programs_and_files_there(line: Connection, there: OtherMachine):
    script = running(["sh", "-c", 'cat; echo "$0"; echo bad >&2; exit 3', "it's \\ !$HOME é\n"])
    done = line.run(script, stdin=b"in\0\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\0\nit's \\ !$HOME é\n\n".encode(), b"bad\n")
    data = bytes(range(256)) * 5000
    (there.home / "a 'file'").write_bytes(data)
    with line.start(["tail", "-c", "+8", f"{there.home}/a 'file'"]) as file:
        assert file.read(5) == data[7:12] and file.read() == data[12:] and file.read() == b""
    with line.start(["cat", f"{there.home}/none"]) as file, pytest.raises(DaemonError, match="none: No such file"):
        file.read(1)


# --- lines that are cut, frozen and slow -----------------------------------------------------------------------


def answers(line: Connection) -> bool:
    """Whether a request goes through to the daemon."""
    try:
        ping(line.folder, timeout=0.5)
        return True
    except DaemonError:
        return False


def until_answered(line: Connection) -> None:
    until(lambda: line.state.kind == "connected" and answers(line), "an answer over a new line")


def test_a_cut_line_comes_back(line: Connection, there: OtherMachine):
    with line.start(["cat"], subprocess.PIPE) as process:
        until(there.sessions)
        there.cut()
        with pytest.raises(LineLost):
            process.read()
    until_answered(line)
    assert there.relay.accepted == 2


def test_it_comes_back_after_a_while_without_a_server(line: Connection, there: OtherMachine):
    there.stop()
    until(lambda: (line.state.kind == "lost" and "closed" in line.state.words) or "reset" in line.state.words)
    with pytest.raises(LineLost, match="no connection to box: "):
        line.run(running(["true"]))
    assert not line.wait(0)
    there.start()
    assert line.wait(PATIENCE)
    until_answered(line)


def test_a_try_by_hand_that_fails_is_not_the_last(line: Connection, there: OtherMachine):
    there.stop()
    until(lambda: line.state.kind == "lost", "the end of the line")
    with pytest.raises(UserError, match="Try: ssh box"):
        line.ask()
    there.start()
    until(lambda: line.state.kind == "connected", "the line again, without a key")


def test_another_line_takes_over_from_a_frozen_one(
    line: Connection, there: OtherMachine, monkeypatch: pytest.MonkeyPatch
):
    kinds, change = [], line._set  # the silence may be over before it is looked for
    monkeypatch.setattr(line, "_set", lambda kind, words: kinds.append(kind) or change(kind, words))
    frozen = there.freeze()
    until(lambda: "silent" in kinds, "the silence being noticed")
    until_answered(line)
    assert there.relay.accepted == 2
    for process in frozen:
        process.kill()


def test_a_network_that_pauses_keeps_its_line(line: Connection, there: OtherMachine):
    there.relay.freeze()
    until(lambda: line.state.kind == "silent", "the silence being noticed")
    there.relay.thaw()
    until_answered(line)
    assert line.run(running(["echo", "x"])).stdout == b"x\n"


def test_a_slow_line_is_not_taken_for_dead(line: Connection, there: OtherMachine):
    """Its queue alone holds 5 seconds, and 3 without an answer count as silence."""
    data = os.urandom(350_000)
    (there.home / "file").write_bytes(data)
    there.relay.bytes_per_second, there.relay.delay = 50_000, 0.3
    kinds = set()
    with line.start(["cat", f"{there.home}/file"]) as file:
        read = b""
        while more := file.read(2**14):
            read += more
            kinds.add(line.state.kind)
    assert read == data and kinds == {"connected"} and there.relay.accepted == 1


def test_the_users_own_multiplexing_is_left_alone(there: OtherMachine, state: Path):
    there.write_config("ControlMaster auto", f"ControlPath {there.folder}/mine", "ControlPersist 600")
    with connected(ALIAS, state) as line:
        there.cut()
        until(lambda: there.relay.accepted == 2)
        until_answered(line)
        assert there.relay.accepted == 2 and not (there.folder / "mine").exists()


def test_forwards_and_commands_of_the_users_configuration_are_not_ours(there: OtherMachine, state: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        forward = f"LocalForward {taken.getsockname()[1]} localhost:1"
        there.write_config(forward, "ExitOnForwardFailure yes", "RemoteCommand echo mine", "RequestTTY force")
        with connected(ALIAS, state) as line:
            assert line.run(running(["echo", "ours"])).stdout == b"ours\n"


def test_through_a_jump_host(there: OtherMachine, state: Path):
    there.write_config()
    hop = (there.folder / "config").read_text().replace(f"Host {ALIAS}", "Host hop")
    there.write_config("ProxyJump hop")
    with (there.folder / "config").open("a") as config:
        config.write(hop)
    with connected(ALIAS, state) as line:
        assert line.run(running(["echo", "x"])).stdout == b"x\n"
        there.cut()
        until_answered(line)


# --- the daemon there ------------------------------------------------------------------------------------------


def test_a_daemon_that_moved_is_followed(alone: Connection, lonely: OtherMachine):
    line, there = alone, lonely
    assert line.has_started
    before = line.status.control
    stop_daemon(there.daemon_dir)
    until(lambda: not answers(line))
    until(lambda: answers(line) or line.state.daemon == "no daemon runs there")
    old, there.daemon_dir = there.daemon_dir, there.folder / "e"
    there.install_wanlora()
    with running_daemon(there.daemon_dir):
        until(lambda: answers(line) and not line.state.daemon, "the daemon at its new place")
        assert line.status.control != before
    there.daemon_dir = old


def test_a_daemon_that_ended_is_started_again_when_asked(alone: Connection, lonely: OtherMachine):
    line, there = alone, lonely
    stop_daemon(there.daemon_dir)
    assert line.start_daemon() and answers(line)
    assert not line.start_daemon()
