"""What a command leaves behind, however it ends, in each phase: no process, and no folder but that of a killed one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers import ROOT
from tests.helpers.sshd import ALIAS, OtherMachine, needs_sshd
from tests.helpers.terminal import Terminal
from tests.helpers.tiers import thorough
from tests.helpers.waiting import PATIENCE, until

pytestmark = needs_sshd
USER = """
import pathlib, subprocess, sys, time
from wanlora_tui.remote.connection import connected
with connected(sys.argv[1], pathlib.Path(sys.argv[2])) as there:
    process = there.start(["cat"], subprocess.PIPE)
    print("up", there.folder, flush=True)
    time.sleep(1000)
"""


def ssh_of(there: OtherMachine) -> list[psutil.Process]:
    """Every ssh on this machine that reads this machine's configuration, ours or its jump host's."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"{there.folder}/config" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def none_left(there: OtherMachine) -> bool:
    return not ssh_of(there) and not there.sessions()


def user(there: OtherMachine, state: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A process with a connection, and its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER, ALIAS, str(state)], cwd=ROOT, env=there.environment(), stdout=-1, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().split()[1])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, *thorough(signal.SIGHUP, signal.SIGINT)])
def test_a_signal_leaves_no_process(there: OtherMachine, state: Path, number: signal.Signals):
    process, folder = user(there, state)
    with process:
        assert ssh_of(there) and folder.exists()
        process.send_signal(number)
        assert process.wait(PATIENCE) != 0
    until(lambda: none_left(there), "the end of every ssh")
    assert folder.exists() == (number == signal.SIGKILL)
    if folder.exists():
        other, _ = user(there, state)
        with other:
            assert not folder.exists()
            other.terminate()


@pytest.mark.parametrize("number", [signal.SIGKILL, *thorough(signal.SIGTERM, signal.SIGHUP)])
def test_nor_while_another_line_is_dialled(there: OtherMachine, state: Path, number: signal.Signals):
    process, _ = user(there, state)
    with process:
        before = there.relay.accepted
        there.relay.freeze()
        there.relay.cut()
        until(lambda: there.relay.accepted > before and ssh_of(there), "another line being dialled")
        process.send_signal(number)
        process.wait(PATIENCE)
    until(lambda: not ssh_of(there), "the end of every ssh")


def asking(there: OtherMachine, state: Path) -> Terminal:
    """The same on a terminal, with a key that has a passphrase."""
    there.protect_key("secret")
    return Terminal([sys.executable, "-c", USER, ALIAS, str(state)], size=(100, 24), cwd=ROOT, env=there.environment())


@pytest.mark.parametrize("how", ["kill", "hang up", "ctrl+c"])
def test_nor_while_ssh_asks(there: OtherMachine, state: Path, how: str):
    terminal = asking(there, state)
    try:
        until(lambda: "Enter passphrase for key" in terminal.text, "ssh's question")
        assert len(ssh_of(there)) == 1
        if how == "kill":
            os.kill(terminal.process.pid, signal.SIGKILL)
        elif how == "ctrl+c":
            terminal.press("ctrl+c")
            until(lambda: not terminal.process.isalive(), "its end")
        else:
            terminal.process.close(force=False)
        until(lambda: not ssh_of(there), "the end of every ssh")
    finally:
        terminal.close()
