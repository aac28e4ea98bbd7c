"""Control files: which are commands, when they go, and what is said of the others."""

import json
import os
from pathlib import Path

import pytest

from daemon.orders import leave as left_by_the_daemon
from engine.control import Control, StopWished
from presets.control import ControlFile, parse_control
from presets.errors import UserError
from presets.findings import Finding


@pytest.fixture
def told() -> list[Finding]:
    return []


@pytest.fixture
def control(tmp_path, told) -> Control:
    made = Control(tmp_path, tell=told.append)
    made.open()
    return made


def leave(control: Control, name: str, content: object, *, at: int = 0) -> Path:
    path = control.folder / f"{name}.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    os.utime(path, (1000 + at, 1000 + at))
    return path


def test_commands_wait_in_the_order_they_were_written_until_they_are_done(control):
    second = leave(control, "a", {"id": "a", "command": "save"}, at=2)
    first = leave(control, "b", {"id": "b", "command": "set", "field": "training.lr", "value": "5e-5"}, at=1)
    assert not control.stop_wished() and first.exists(), "a kill before it is honoured must not lose it"
    assert control.waiting() == [(first, ControlFile(id="b", command="set", field="training.lr", value="5e-5")), (second, ControlFile(id="a", command="save"))]
    control.done(first)
    assert not first.exists() and control.waiting() == [(second, ControlFile(id="a", command="save"))]


def test_a_stop_is_taken_at_once(control):
    path = leave(control, "s", {"id": "s", "command": "stop"})
    with pytest.raises(StopWished, match="stop asked for"):
        control.honour()
    assert not path.exists() and control.waiting() == [] and control.why == "stop asked for"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"command": 5}', b'{"id": "x"}', b"\xff", b'{"id": "\xff", "command": "save"}', {"command": "dance"}])
def test_what_is_no_command_is_refused_and_goes(control, told, content):
    path = leave(control, "x", content)
    assert not control.stop_wished() and not path.exists()
    assert [f.code for f in told] == ["command-refused"] and told[0].message.startswith("x.json was refused") and told[0].fix


def test_the_commands_there_are_named():
    with pytest.raises(UserError, match="stop, save, sample, set"):
        parse_control(b'{"command": "dance"}')


def test_waiting_ends_with_a_stop(control):
    leave(control, "s", {"command": "stop"})
    with pytest.raises(StopWished):
        control.sleep(60)


def test_what_the_daemon_leaves_is_what_is_taken(control):
    given = [ControlFile(command="set", field="training.lr", value="5e-5"), ControlFile(command="save"), ControlFile(command="sample")]
    for number, command in enumerate(given):
        left_by_the_daemon(control.folder.parent, f"request {number}", command)
    assert [command for _, command in control.waiting()] == [ControlFile(id=f"request {n}", command=c.command, field=c.field, value=c.value) for n, c in enumerate(given)]
