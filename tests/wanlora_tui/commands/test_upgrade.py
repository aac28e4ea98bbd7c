"""An upgrade in place: a daemon of another version of the protocol is a copy of this one in which that number
differs."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.processes.proc import identify, is_alive
from daemon.wire.blocking import ping
from daemon.wire.client import Client
from daemon.wire.protocol import PROTOCOL_VERSION
from daemon.wire.stop import live_trainers, stop_daemon
from tests.helpers import ROOT
from tests.helpers.interface.harness import TRAINER, environment, own_daemon, running_daemon, until, wanlora, write_job
from tests.helpers.waiting import PATIENCE, until_async
from tests.wanlora_tui.test_cli import submit
from wanlora_tui.feeds.last_seen import LastSeenFile
from wanlora_tui.feeds.run_feed import RunFeed

Start = Callable[[int, Path], "subprocess.Popen[bytes]"]


@pytest.fixture
def of_version(tmp_path: Path) -> Iterator[Start]:
    """Starts the daemon of a version in a folder, and waits until it serves."""
    started: list[subprocess.Popen[bytes]] = []

    def start(version: int, folder: Path) -> "subprocess.Popen[bytes]":
        copy = tmp_path / f"version_{version}"
        if not copy.exists():
            shutil.copytree(ROOT / "daemon", copy / "daemon", ignore=shutil.ignore_patterns("__pycache__"))
            protocol = copy / "daemon/wire/protocol.py"
            old = f"\nPROTOCOL_VERSION = {PROTOCOL_VERSION}\n"
            assert old in protocol.read_text()
            protocol.write_text(protocol.read_text().replace(old, f"\nPROTOCOL_VERSION = {version}\n"))
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "--dir", str(folder), "--trainer", *TRAINER],
            cwd=copy,  # its modules come before those of PYTHONPATH
            env=environment(),
            stderr=subprocess.PIPE,
        )
        started.append(process)
        assert process.stderr is not None
        said = iter(process.stderr.readline, b"")
        assert any(b"serving" in line for line in said)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_command_puts_the_new_daemon_in_place_of_an_older_one(of_version: Start, tmp_path: Path):
    with own_daemon() as folder:
        submit(folder, write_job(tmp_path, "long", steps=100_000, pace_ms=20))
        submit(folder, write_job(tmp_path, "waits", steps=100_000, pace_ms=20))
        [trainer, *_] = until(lambda: live_trainers(folder), "the trainer")
        process = identify(trainer)
        stop_daemon(folder)
        old = of_version(PROTOCOL_VERSION - 1, folder)
        for command in (["jobs"], ["wait", "long"], ["submit", ROOT / "pyproject.toml"], ["daemon", "notify-test"]):
            said = wanlora(*command, "--dir", folder)
            assert said.returncode == 1 and "Traceback" not in said.stderr, said
            assert f"wanlora --dir {folder} daemon restart" in said.stderr or command[0] == "submit", said
        said = wanlora("daemon", "restart", "--dir", folder)
        assert said.returncode == 0 and old.wait(PATIENCE) == 0, said
        assert f"(pid {old.pid}) has ended" in said.stderr and "has taken over 1 trainer" in said.stderr
        assert "1 job waits as before" in said.stderr
        assert process is not None and is_alive(process) and ping(folder).pid != old.pid


@pytest.mark.parametrize("installed", [True, False])
def test_who_waits_goes_on_with_the_new_version_or_says_what_to_do(of_version: Start, tmp_path: Path, installed: bool):
    with own_daemon() as folder:
        submit(folder, write_job(tmp_path, "long", steps=100_000, pace_ms=20))
        until(lambda: live_trainers(folder), "the trainer")
        place = tmp_path / "here"
        shutil.copytree(ROOT / "daemon", place / "daemon", ignore=shutil.ignore_patterns("__pycache__"))
        waiting = subprocess.Popen(
            [sys.executable, "-m", "wanlora_tui.cli", "wait", "--dir", str(folder), "long"],
            cwd=place,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr is not None and "Waiting for long" in waiting.stderr.readline()
        stop_daemon(folder)
        of_version(PROTOCOL_VERSION + 1, folder)
        if installed:
            protocol = place / "daemon/wire/protocol.py"
            protocol.write_text(
                protocol.read_text().replace(
                    f"\nPROTOCOL_VERSION = {PROTOCOL_VERSION}\n", f"\nPROTOCOL_VERSION = {PROTOCOL_VERSION + 1}\n"
                )
            )
            until(lambda: "Waiting for long" in waiting.stderr.readline(), "the new one")  # type: ignore[union-attr]
            stop = [sys.executable, "-m", "wanlora_tui.cli", "cancel", "--dir", str(folder), "long"]
            assert subprocess.run(stop, cwd=place, env=environment(), check=False).returncode == 0
        out, err = waiting.communicate()
        if installed:
            assert out == "long cancelled\n" and waiting.returncode == 1, err
        else:
            assert out == "" and waiting.returncode == 1, err
            assert f"Then wait again: wanlora --dir {folder} wait long" in err, err
        stop_daemon(folder)
        with running_daemon(folder):
            if not installed:
                assert wanlora("cancel", "long", "--dir", folder).returncode == 0
            until(lambda: not live_trainers(folder), "its end")


async def test_an_open_dashboard_says_what_to_do_and_comes_back(of_version: Start, tmp_path: Path):
    with own_daemon() as folder:
        await asyncio.to_thread(submit, folder, write_job(tmp_path, "long", steps=100_000, pace_ms=20))
        async with Client(folder) as client:
            feed = RunFeed(client, await client.show("long"), LastSeenFile(tmp_path / "seen"))
            following = asyncio.create_task(feed.follow(lambda: None))
            await until_async(lambda: feed.view.step > 3, "steps")
            await asyncio.to_thread(stop_daemon, folder)
            new = await asyncio.to_thread(of_version, PROTOCOL_VERSION + 1, folder)
            await until_async(lambda: "left and opened again" in feed.problem, "the word about the upgrade")
            assert f"protocol version {PROTOCOL_VERSION + 1}" in feed.problem
            os.kill(new.pid, 15)
            await asyncio.to_thread(new.wait)
            step = feed.view.step
            with running_daemon(folder):
                await until_async(lambda: not feed.problem and feed.view.step > step, "the way back")
                following.cancel()
                await client.cancel("long")
                await until_async(lambda: not live_trainers(folder), "its end")
