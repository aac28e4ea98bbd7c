"""What ssh asks a person: on the terminal before the screens open, and again only when they say so."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.wire.client import Client
from tests.helpers import ROOT
from tests.helpers.interface.harness import write_job
from tests.helpers.sshd import ALIAS, OtherMachine, needs_sshd
from tests.helpers.terminal import Terminal
from tests.helpers.waiting import PATIENCE, until

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


@pytest.mark.parametrize("command", [["attach"], ["jobs"]], ids=" ".join)
@pytest.mark.parametrize("passwords", [True, False], ids=["password", "key-only"])
def test_a_login_that_fails_says_what_to_do_and_no_screen_opens(
    there: OtherMachine, state: Path, command: list[str], passwords: bool
):
    """A password is asked for on the terminal, below what ssh has said before; where keys alone are taken, nothing is
    asked."""
    there.stop()
    (there.folder / "authorized_keys").write_text("")
    there.write_sshd_config(*(["PasswordAuthentication yes"] if passwords else []))
    there.start()
    given = [sys.executable, "-m", "wanlora_tui.cli", *command, "--host", ALIAS, "--dir", str(state)]
    terminal = Terminal(given, size=(200, 40), cwd=ROOT, env=there.environment())
    try:
        for asked in range(1, 4 if passwords else 1):
            terminal.wait(lambda text, asked=asked: text.count("password:") == asked)
            terminal.press("wrong", "enter")
        assert terminal.wait_end() == 1
        question, refused = "root@127.0.0.1's password:", "Permission denied, please try again."
        asked = [row for row in terminal.text.split("\n") if "password:" in row or "please" in row]
        assert asked == ([question, refused, question, refused, question] if passwords else []), terminal.text
        assert "Permission denied (publickey" in terminal.words and "wrong" not in terminal.text
        assert f"ssh-copy-id {ALIAS} " in terminal.words and "ssh-add" in terminal.words, terminal.text
        assert b"\x1b[?1049h" not in terminal.raw, "the screens were opened"
    finally:
        terminal.close()


def test_without_a_terminal_a_key_with_a_passphrase_ends_at_once_with_what_to_do(there: OtherMachine, state: Path):
    there.protect_key("secret")
    given = [sys.executable, "-m", "wanlora_tui.cli", "jobs", "--host", ALIAS, "--dir", str(state)]
    done = subprocess.run(
        given, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, env=there.environment(),
        start_new_session=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1 and "Permission denied" in done.stderr, done.stderr
    assert f"ssh-copy-id {ALIAS} " in done.stderr and "ssh-add" in done.stderr, done.stderr
