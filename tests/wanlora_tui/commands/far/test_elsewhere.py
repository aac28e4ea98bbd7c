"""--host before and behind each command: what runs there, what talks to the daemon there, and how both end."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from presets.text import UNWRITABLE, EscapedStream
from tests.helpers import NO_GPUS, ROOT
from tests.helpers.interface.harness import wanlora as run_wanlora
from tests.helpers.interface.harness import write_job
from tests.helpers.sshd import ALIAS, OtherMachine, needs_sshd
from tests.helpers.terminal import Terminal
from tests.helpers.tiers import thorough
from tests.helpers.waiting import PATIENCE, until
from tests.wanlora_tui.remote.test_connection import submitted
from wanlora_tui.cli import parser
from wanlora_tui.commands.far.elsewhere import _hand_on, command_line

pytestmark = needs_sshd


def wanlora(box: OtherMachine, here: Path, *args: str | Path) -> "subprocess.CompletedProcess[str]":
    """The command on this machine, whose own daemon would be another one."""
    return run_wanlora("--dir", here / "own", *args, cwd=here, env=box.environment())


def test_commands_on_jobs_reach_the_daemon_there(box: OtherMachine, here: Path):
    asyncio.run(submitted(box.daemon_dir, write_job(box.home, "far_v1", steps=10_000, pace_ms=20)))
    until(lambda: (box.home / "runs/far_v1/events.jsonl").exists(), "the job running")
    said = wanlora(box, here, "--host", ALIAS, "jobs")
    assert "far_v1" in said.stdout and f"{ALIAS}:{box.home}/runs/far_v1" in said.stdout, said.stderr
    assert wanlora(box, here, "set", "far_v1", "training.lr=5e-5", "--host", ALIAS).returncode == 0
    said = wanlora(box, here, "stop", "--host", ALIAS, "far_v1")
    assert said.returncode == 0 and f"wanlora --host {ALIAS} resume far_v1" in said.stderr, said.stderr
    said = wanlora(box, here, "watch", "far_v1", "--host", ALIAS)
    assert said.returncode == 75 and "changed training.lr" in said.stdout, said.stderr
    said = wanlora(box, here, "checkpoints", f"{ALIAS}:far_v1.toml", "--host", ALIAS)
    assert said.returncode == 0 and "STEP" in said.stdout, said.stderr
    said = wanlora(box, here, "submit", "far_v1.toml", "--host", ALIAS)
    assert said.returncode == 1 and f"wanlora --host {ALIAS} doctor" in said.stderr and "not submitted" in said.stderr
    assert not (here / "own/run").exists()


def test_what_runs_there_has_its_streams_and_its_exit_code(there: OtherMachine, here: Path):
    (there.home / ".bashrc").write_text("echo noise; echo noise >&2\n")
    (there.home / "bad.toml").write_text("[job]\nnam = 1\n")
    said = wanlora(there, here, "check", "bad.toml", "--json", "--host", ALIAS)
    assert said.returncode == 1 and said.stdout.startswith("[") and "noise" not in said.stdout
    said = wanlora(there, here, "--host", ALIAS, "daemon", "status")
    assert said.returncode == 1 and "no daemon is running" in said.stdout, said.stderr
    assert f"wanlora --host {ALIAS} daemon start" in said.stdout + said.stderr
    said = wanlora(there, here, "plan", "none.toml", "--host", ALIAS)
    assert said.returncode == 1 and f"wanlora --host {ALIAS} new" in said.stderr, said.stderr
    said = wanlora(there, here, "train", "bad.toml", "--host", ALIAS)
    assert said.returncode == 1 and f"wanlora --host {ALIAS} submit" in said.stderr


def processes_of(there: OtherMachine, word: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if word in command and str(there.daemon_dir) in command and "ssh" not in command.split(" ")[0]:
                found.append(command)
    return found


def doctor_is(there: OtherMachine, script: str) -> None:
    """What `wanlora doctor` runs there, in place of the slow real one."""
    there.write_wrapper(
        there.home / ".local/bin/wanlora",
        f'case "$*" in *doctor*) {script};; esac\n'
        f'export PYTHONPATH={NO_GPUS}:{ROOT}; exec {sys.executable} -m wanlora_tui.cli --dir {there.daemon_dir} "$@"',
    )


@pytest.mark.parametrize("end", [signal.SIGINT, *thorough(signal.SIGKILL, signal.SIGTERM)])
def test_ctrl_c_ends_what_runs_there(there: OtherMachine, here: Path, end: signal.Signals):
    doctor_is(
        there,
        f'echo begun; exec {sys.executable} -c "'
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from wanlora_tui.terminal.leash import put_on_leash; put_on_leash()\n"
        f'time.sleep(3600)" {ROOT} {there.daemon_dir} waits-for-ever',
    )
    command = [sys.executable, "-m", "wanlora_tui.cli", "doctor", "--host", ALIAS, "--dir", str(here / "own")]
    process = subprocess.Popen(
        command,
        env=there.environment(),
        cwd=here,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == b"begun\n"
    until(lambda: processes_of(there, "waits-for-ever"), "the command there")
    (os.killpg if end == signal.SIGINT else os.kill)(process.pid, end)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[end], err
    until(lambda: not processes_of(there, "waits-for-ever"), "its end there")


def test_on_a_terminal_it_has_a_terminal_there(there: OtherMachine, here: Path):
    doctor_is(there, 'stty size; echo "$TERM $COLORTERM"; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo "given: $*"; exit 3')
    command = [sys.executable, "-m", "wanlora_tui.cli", "doctor", "--host", ALIAS, "--dir", str(here / "own")]
    terminal = Terminal(command, size=(101, 40), cwd=here, env=there.environment(COLORTERM="truecolor"))
    try:
        assert terminal.wait_end() == 3
        assert "40 101 xterm-256color truecolor given: --via box doctor" in terminal.words, terminal.text
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("given", "there_it_is"),
    [
        (["--host", "box", "check", "a.toml"], ["check", "a.toml"]),
        (["check", "box:jobs/a.toml", "--host=box", "--json"], ["check", "--json", "jobs/a.toml"]),
        (["new", "--kind", "style", "--clips", "box:~/c", "--set", "a=1", "--set", "b=2", "--host", "box"],
         ["new", "--kind=style", "--clips=c", "--set=a=1", "--set=b=2"]),
        (["cache", "--host", "box"], ["cache"]),
        (["cache", "list", "--host", "box", "weights"], ["cache", "list", "weights"]),
        (["--dir", "/x", "daemon", "status", "--json", "--host", "box"], ["daemon", "status", "--json"]),
        (["plan", "--vram", "24", "--host", "box", "--", "-odd.toml"], ["plan", "--vram=24.0", "--", "-odd.toml"]),
        (["submit", "a.toml", "--from", "20", "--resume", "--host", "box"],
         ["submit", "--resume", "--from=20", "a.toml"]),
    ],
)  # fmt: skip
def test_the_option_stands_anywhere_and_stays_here(given: list[str], there_it_is: list[str]):
    assert command_line(parser().parse_args(given)) == there_it_is


def test_every_command_takes_it_in_both_places():
    top = parser()
    for command in next(a for a in top._actions if hasattr(a, "choices") and isinstance(a.choices, dict)).choices:
        if command != "serve-files":
            assert vars(top.parse_args(["--host", "box", *usual(command)]))["host"] == "box"
            assert vars(top.parse_args([*usual(command), "--host", "box"]))["host"] == "box"


def usual(command: str) -> list[str]:
    more = {
        "new": ["--kind", "style", "--clips", "c"],
        "set": ["j", "a=1"],
        "daemon": ["status"],
        "ara": ["m"],
        "clips": ["c"],
        "priority": ["j", "1"],
        "move": ["j", "first"],
        "rename": ["j", "other"],
        "completion": ["bash"],
    }
    without = {"jobs", "demo", "wizard", "doctor", "cache", "watch", "attach", "fetch"}
    return [command, *more.get(command, [] if command in without else ["j"])]


@pytest.mark.parametrize("mark", ["the mark", "another"])
def test_what_is_said_there_acts_on_no_terminal_here(mark: str):
    said = "caf\u00e9 \x1b]52;c;eA==\x07 \u202e\n".encode() + b"\x9b31m caf\xe9\n"
    shown = io.BytesIO()
    stream = EscapedStream(io.TextIOWrapper(shown, encoding="utf-8", errors=UNWRITABLE))
    source, sink = os.pipe()
    with os.fdopen(source, "rb") as there, os.fdopen(sink, "wb") as other:
        other.write(b"the mark\n" + said)
        other.close()
        _hand_on(there, stream, mark)
    escaped = "caf\u00e9 \\x1b]52;c;eA==\\x07 \\u202e\n".encode() + b"\\x9b31m caf\xe9\n"
    assert shown.getvalue() == (b"" if mark == "the mark" else b"the mark\n") + escaped
