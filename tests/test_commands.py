"""Commands that a server forks are as processes of their own: streams, exit codes, signals, what they find around them.
And a server that dies is told, never waited for."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.helpers import NO_GPUS, ROOT
from tests.helpers.interface import commands
from tests.helpers.interface.commands import Server, ServerDied
from tests.helpers.interface.harness import environment, wanlora
from tests.helpers.leaks import guarded
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.process
MAINS = "tests.helpers.interface.small_commands"


def run(main: str, *arguments: str, cwd: Path = ROOT, server: Server | None = None, **more: str):
    """One of the above."""
    return commands.run(
        [*arguments],
        cwd=cwd,
        environment=environment(**more),
        timeout=PATIENCE,
        main=f"{MAINS}:{main}",
        server=server,
    )


class Held:
    """A command with a pipe to its input and one from its output."""

    def __init__(self, main: str, server: Server) -> None:
        there, self.input = os.pipe()
        self.output, out = os.pipe()
        self.command = server.start(
            [], cwd=ROOT, environment=environment(), streams=(there, out, 2), main=f"{MAINS}:{main}"
        )
        os.close(there)
        os.close(out)

    def close(self) -> None:
        os.close(self.input)
        os.close(self.output)


def test_it_has_the_arguments_folder_and_environment_that_it_is_given(tmp_path: Path):
    odd = "caf\udce9 \U0001f3a5\n"
    said = run("tell", "a", odd, "", cwd=tmp_path, HOME="/there", ODD=odd, PYTHONPATH=f"{NO_GPUS}{os.pathsep}{ROOT}")
    told = json.loads(said.stdout)
    assert told["arguments"] == ["a", odd, ""] and said.returncode == 3 and said.stderr == "talk\n"
    assert told["program"] == [sys.executable, "-m", MAINS, "a", odd, ""]
    assert told["cwd"] == str(tmp_path)
    assert told["environment"] == environment(HOME="/there", ODD=odd, PYTHONPATH=f"{NO_GPUS}{os.pathsep}{ROOT}")
    assert told["path"][:3] == [str(tmp_path), str(NO_GPUS), str(ROOT)]


def test_it_has_nothing_of_its_server():
    told = json.loads(run("tell").stdout)
    assert told["descriptors"] == 3 and told["signals"] == [True] * 3 and told["blocked"] == 0
    plain = json.loads(run("tell", PYTHONHASHSEED="7").stdout)  # in a Python of its own
    assert plain["environment"].pop("PYTHONHASHSEED") == "7"
    assert told == plain


def test_an_error_that_nobody_catches_is_a_traceback_and_exit_code_1():
    said = run("fail")
    assert said.returncode == 1 and said.stdout == "begun\n"
    assert said.stderr.startswith("Traceback") and said.stderr.endswith("RuntimeError: of the command\n")
    said = run("leave")
    assert (said.returncode, said.stdout, said.stderr) == (1, "", "why\n")


def test_a_folder_that_is_not_there_is_told_as_by_any_process(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        run("tell", cwd=tmp_path / "no")


def test_it_reads_its_input_and_its_signals_reach_it():
    server = commands.the_server()
    held = Held("copy", server)
    os.write(held.input, b"words")
    os.close(held.input)
    assert os.read(held.output, 100) == b"WORDS" and held.command.wait(PATIENCE) == 0
    os.close(held.output)

    held = Held("hold", server)
    assert os.read(held.output, 100) == b"here\n" and held.command.poll() is None
    held.command.send_signal(signal.SIGINT)
    assert held.command.wait(PATIENCE) == 130 and os.read(held.output, 100) == b"interrupted\n"
    held.close()

    held = Held("hold", server)
    held.command.kill()
    assert held.command.wait(PATIENCE) == -signal.SIGKILL == held.command.poll()
    held.close()


def test_many_at_once_have_their_own_answers():
    said: dict[int, str] = {}

    def ask(number: int) -> None:
        said[number] = run("tell", str(number)).stdout

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: json.loads(text)["arguments"] for n, text in said.items()} == {n: [str(n)] for n in range(12)}


def test_a_command_that_takes_too_long_is_killed():
    there, ours = os.pipe()  # it waits for the end of its input
    before = os.dup(0)
    os.dup2(there, 0)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            commands.run([], cwd=ROOT, environment=environment(), timeout=0.2, main=f"{MAINS}:hold")
    finally:
        os.dup2(before, 0)
        for fd in (before, there, ours):
            os.close(fd)


def test_a_server_that_dies_is_told_and_not_waited_for():
    server = Server()
    there, ours = os.pipe()  # what it leaves behind ends with this
    out = os.open(os.devnull, os.O_WRONLY)
    command = server.start(
        [], cwd=ROOT, environment=environment(), streams=(there, out, out), main=f"{MAINS}:kill_its_parent"
    )
    with pytest.raises(ServerDied, match=r"has died under .*: its exit code is -9"):
        command.wait(PATIENCE)
    with pytest.raises(ServerDied, match="does not take any"):
        run("tell", server=server)
    for fd in (there, ours, out):
        os.close(fd)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, ""),
        ({"PYTHON_COLORS": "1"}, ""),
        ({"HOME": "/there", "XDG_STATE_HOME": "/there", "PYTHONPATH": f"{NO_GPUS}{os.pathsep}{ROOT}"}, ""),
        ({"PYTHONIOENCODING": "ascii"}, "PYTHONIOENCODING"),
        ({"LC_ALL": "POSIX"}, "LC_ALL"),
        ({"TEXTUAL_ANIMATIONS": "none"}, "TEXTUAL_ANIMATIONS"),
        ({"PYTHONPATH": f"/other{os.pathsep}{ROOT}"}, "PYTHONPATH names"),
    ],
)
def test_what_is_read_at_the_start_needs_a_python_of_its_own(more: dict[str, str], why: str):
    reason = commands.the_server().own_start(environment(**more))
    assert why in reason and bool(reason) == bool(why), reason


def test_so_does_what_a_process_has_of_its_parent():
    server, before = commands.the_server(), os.umask(0o077)
    try:
        os.umask(before ^ 0o050)
        assert "gets other things" in server.own_start(environment())
    finally:
        os.umask(before)
    assert not server.own_start(environment())


def test_the_guard_of_tests_spares_a_server_and_sees_its_commands():
    with guarded(patience=0.2):
        server = Server()
    with pytest.raises(AssertionError, match="the test leaves behind:") as caught, guarded(patience=0.2):
        held = Held("hold", server)
        assert os.read(held.output, 100) == b"here\n"
    assert f"process {held.command.pid}: " in str(caught.value)
    assert f"process {server._process.pid}: " not in str(caught.value)
    held.close()
    assert held.command.wait(PATIENCE) == 0
    server._control.shutdown(socket.SHUT_RDWR)
    assert server._process.wait(PATIENCE) == 0  # it ends with its socket
    server.end()


def test_wanlora_is_forked(monkeypatch: pytest.MonkeyPatch):
    """And nothing else says so: what it prints is the same."""
    commands.the_server()
    monkeypatch.setenv("LD_LIBRARY_PATH", "as import cv2 does")

    def no_start(*args: object, **options: object) -> None:
        raise AssertionError("a Python of its own was started")

    monkeypatch.setattr(commands.subprocess, "run", no_start)
    said = wanlora("--version")
    assert said.returncode == 0 and said.stdout.count(".") == 2 and said.stderr == ""
