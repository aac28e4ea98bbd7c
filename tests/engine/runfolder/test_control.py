"""Control files: which are commands, when they go, and what is said of the others."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.jobs.control_files import write_command
from engine.runfolder.control import Control, StopRequested
from presets.errors import UserError
from presets.findings import Finding
from presets.runs.control import TrainerCommand, parse_control
from tests.helpers.waiting import PATIENCE


@pytest.fixture
def told() -> list[Finding]:
    return []


@pytest.fixture
def control(tmp_path, told) -> Control:
    made = Control(tmp_path, tell=told.append)
    made.open()
    return made


def put(control: Control, name: str, content: object, *, at: int = 0) -> Path:
    path = control.folder / f"{name}.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    os.utime(path, (1000 + at, 1000 + at))
    return path


def test_commands_wait_in_the_order_they_were_written_until_they_are_done(control):
    second = put(control, "a", {"id": "a", "command": "save"}, at=2)
    first = put(control, "b", {"id": "b", "command": "set", "field": "training.lr", "value": "5e-5"}, at=1)
    assert not control.stop_requested() and first.exists(), "a kill before it is honoured must not lose it"
    assert control.waiting() == [
        (first, TrainerCommand(id="b", command="set", field="training.lr", value="5e-5")),
        (second, TrainerCommand(id="a", command="save")),
    ]
    control.done(first)
    assert not first.exists() and control.waiting() == [(second, TrainerCommand(id="a", command="save"))]


def test_a_stop_is_taken_at_once(control):
    path = put(control, "s", {"id": "s", "command": "stop"})
    with pytest.raises(StopRequested, match="stopped on request"):
        control.raise_if_stop_requested()
    assert not path.exists() and control.waiting() == [] and control.why == "stopped on request"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"command": 5}',
        b'{"id": "x"}',
        b"\xff",
        b'{"id": "\xff", "command": "save"}',
        {"command": "dance"},
    ],
)
def test_what_is_no_command_is_refused_and_goes(control, told, content):
    path = put(control, "x", content)
    assert not control.stop_requested() and not path.exists()
    assert (
        [f.code for f in told] == ["command-refused"]
        and told[0].message.startswith("x.json was refused")
        and told[0].fix
    )


def test_the_commands_there_are_named():
    with pytest.raises(UserError, match="stop, save, sample, set"):
        parse_control(b'{"command": "dance"}')


def test_waiting_ends_with_a_stop(control):
    put(control, "s", {"command": "stop"})
    with pytest.raises(StopRequested):
        control.sleep(PATIENCE)


def test_what_the_daemon_leaves_is_what_is_taken(control):
    given = [
        TrainerCommand(command="set", field="training.lr", value="5e-5"),
        TrainerCommand(command="save"),
        TrainerCommand(command="sample"),
    ]
    for number, command in enumerate(given):
        write_command(control.folder.parent, f"request {number}", command)
    assert [command for _, command in control.waiting()] == [
        TrainerCommand(id=f"request {n}", command=c.command, field=c.field, value=c.value) for n, c in enumerate(given)
    ]


LISTEN = """
import os, signal, sys, time
from pathlib import Path
from engine.runfolder.control import Control
control = Control(Path(sys.argv[1]), tell=print)
control.listen()
"""


def test_a_scheduler_s_signal_asks_for_a_stop_however_often_it_comes_and_a_second_ctrl_c_ends_at_once_with_a_word():
    code = (
        LISTEN + "for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):"
        " os.kill(os.getpid(), number)\nprint(control.why, flush=True)\nos.kill(os.getpid(), signal.SIGINT)\n"
        "print('still here')"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, "nowhere"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (said.returncode, said.stdout) == (128 + signal.SIGINT, "SIGTERM received\n")
    assert (
        said.stderr.startswith("wanlora: SIGINT received again: ended at once, without saving.")
        and said.stderr.count("\n") == 1
    )


def test_a_hangup_wishes_a_stop_and_however_many_follow_do_not_end_the_run():
    """A connection that drops brings two or three: of the kernel and of the shell. A signal of a user's still counts
    from one."""
    code = (
        LISTEN + "for _ in range(3): os.kill(os.getpid(), signal.SIGHUP)\nprint(control.why)\nos.kill(os.getpid(),"
        " signal.SIGTERM)\nprint(control.why)\nos.kill(os.getpid(), signal.SIGHUP)\nprint(control.why)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, "nowhere"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (said.returncode, said.stdout) == (0, "SIGHUP received\nSIGTERM received\nSIGTERM received\n"), said.stderr


def test_a_hangup_that_is_ignored_stays_ignored():
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
        + LISTEN
        + "os.kill(os.getpid(), signal.SIGHUP)\nprint(repr(control.why))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code, "nowhere"], capture_output=True, text=True, timeout=PATIENCE, check=True
        ).stdout
        == "''\n"
    )


def test_a_stderr_that_takes_nothing_holds_up_no_end():
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, bytes(4096))
    except BlockingIOError:
        os.set_blocking(write, True)
    code = LISTEN + "for _ in range(2): os.kill(os.getpid(), signal.SIGINT)"
    assert (
        subprocess.run([sys.executable, "-c", code, "nowhere"], stderr=write, timeout=PATIENCE, check=False).returncode
        == 128 + signal.SIGINT
    )
    os.close(read)
    os.close(write)


def test_a_launcher_that_is_gone_is_told(tmp_path):
    """What stops the trainer then is a SIGTERM, too: of the daemon, which has seen it left alone."""
    code = (
        LISTEN + "there, launcher = Path(sys.argv[1]) / 'there', os.getppid()\nthere.touch()\n"
        "while os.getppid() == launcher: time.sleep(0.01)\nos.kill(os.getpid(), signal.SIGTERM)\nprint(control.why)"
    )
    launcher = [
        "sh",
        "-c",
        '"$0" -c "$1" "$2" & while [ ! -e "$2/there" ]; do sleep 0.02; done; kill -9 $$',
        sys.executable,
        code,
        str(tmp_path),
    ]
    said = subprocess.run(launcher, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (
        -signal.SIGKILL,
        "its launcher was killed or ended, then SIGTERM received\n",
        "",
    )
