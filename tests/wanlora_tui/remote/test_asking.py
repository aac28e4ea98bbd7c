"""What ssh asks a person: on the terminal before the screens open, and again only when they say so."""

import asyncio
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.wire.client import Client
from tests.helpers import ROOT
from tests.helpers.interface.harness import write_job
from tests.helpers.sshd import ALIAS, OtherMachine, needs_sshd
from tests.helpers.terminal import Terminal
from tests.helpers.waiting import until

pytestmark = needs_sshd
QUESTION = "Enter passphrase for key"


@pytest.fixture
def job(daemon: Path, tmp_path: Path) -> Iterator[str]:
    """One that trains there for as long as the test needs it."""

    async def submitted() -> int:
        async with Client(daemon) as client:
            return (await client.submit(write_job(tmp_path, tmp_path.name[-20:], steps=100_000, pace_ms=50))).id

    async def cancelled() -> None:
        async with Client(daemon) as client:
            await client.cancel(number)

    number = asyncio.run(submitted())
    yield str(number)
    asyncio.run(cancelled())


@pytest.fixture
def terminal(there: OtherMachine, state: Path, job: str) -> Iterator[Terminal]:
    """`wanlora attach JOB --host box`, with a key that has a passphrase."""
    there.protect_key("secret")
    command = [sys.executable, "-m", "wanlora_tui.cli", "attach", job, "--host", ALIAS, "--dir", str(state)]
    terminal = Terminal(command, size=(120, 30), cwd=ROOT, env=there.environment())
    try:
        yield terminal
    finally:
        terminal.close()


def test_a_passphrase_is_asked_once_and_again_only_at_a_key(terminal: Terminal, there: OtherMachine):
    terminal.wait(QUESTION)
    terminal.press("wrong", "enter")
    terminal.wait(lambda text: text.count(QUESTION) == 2)
    terminal.press("secret", "enter")
    terminal.wait("daemon alive")
    there.cut()
    terminal.wait("ssh must ask you (key a): root@127.0.0.1: Permission denied (publickey)")
    dialled = there.relay.accepted
    assert dialled == 2
    terminal.press("a")
    terminal.wait(lambda text: f"Connecting to {ALIAS}" in text and QUESTION in text)
    assert "daemon" not in terminal.text
    terminal.press("ctrl+c")  # back to the screens, with why
    terminal.wait("ssh must ask you (key a)")
    assert there.relay.accepted == dialled + 1
    terminal.press("a")
    terminal.wait(QUESTION)
    terminal.press("secret", "enter")
    terminal.wait("daemon alive")
    terminal.press("q")
    assert terminal.wait_end() == 0 and f"--host {ALIAS}" in terminal.text
    until(lambda: not there.sessions(), "the end of the connection")


def test_a_line_that_is_lost_says_so_with_the_words_of_ssh(terminal: Terminal, there: OtherMachine):
    terminal.wait(QUESTION)
    terminal.press("secret", "enter")
    terminal.wait("daemon alive")
    there.stop()
    there.relay.close()
    terminal.wait(f"no connection to {ALIAS} for ")
    terminal.wait("Connection refused")
    assert "training continues" not in terminal.text
    terminal.press("a")  # it may be tried at once
    terminal.wait("Try: ssh box")


def test_a_changed_host_key_is_told_in_full_and_no_screen_opens(there: OtherMachine, state: Path, daemon: Path):
    shutil.copy(there.folder / "key.pub", there.folder / "known_hosts")
    kind, key, *_ = (there.folder / "key.pub").read_text().split()
    (there.folder / "known_hosts").write_text(f"[127.0.0.1]:{there.relay.port} {kind} {key}\n")
    command = [sys.executable, "-m", "wanlora_tui.cli", "attach", "--host", ALIAS, "--dir", str(state)]
    terminal = Terminal(command, size=(120, 40), cwd=ROOT, env=there.environment())
    try:
        assert terminal.wait_end() == 1
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in terminal.text
        assert f"wanlora: {ALIAS}: Host key verification failed. Try: ssh {ALIAS}" in terminal.words
    finally:
        terminal.close()


def test_an_unknown_host_key_is_asked_about(there: OtherMachine, state: Path, job: str):
    there.write_config("StrictHostKeyChecking ask")
    command = [sys.executable, "-m", "wanlora_tui.cli", "attach", job, "--host", ALIAS, "--dir", str(state)]
    terminal = Terminal(command, size=(120, 30), cwd=ROOT, env=there.environment())
    try:
        terminal.wait("Are you sure you want to continue connecting")
        terminal.press("yes", "enter")
        terminal.wait("daemon alive")
    finally:
        terminal.close()
