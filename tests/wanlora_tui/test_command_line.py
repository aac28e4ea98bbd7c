"""What the command line says of what it does not know, its help in groups, and what a shell completes."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, own_daemon, write_job
from tests.wanlora_tui.test_cli import clips, submit
from wanlora_tui.arguments import completing
from wanlora_tui.cli import parser


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sumbit job.toml", "there is no command 'sumbit'. Did you mean submit?"),
        ("daemon strat", "there is no command 'strat'. Did you mean start?"),
        ("status --json", "there is no command 'status'. Did you mean daemon status?"),
        ("daemon keys alow", "Did you mean allow?"),
        ("cache cler", "Did you mean clear?"),
        ("jobs --jsn", "unrecognized arguments: --jsn. Did you mean --json?"),
        ("submit job.toml --prioriti=3", "Did you mean --priority?"),
        ("daemon status --jsno", "Did you mean --json?"),
        ("cache list --hst=x", "Did you mean --host?"),
        ("daemon xxxxxxxx", "There are: start, stop"),
    ],
)
def test_what_was_probably_meant_is_named(line: str, said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(line.split())
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--host", "--dir", "--connect"])
@pytest.mark.parametrize("first", [True, False])
def test_a_variable_that_is_empty_names_no_daemon(option: str, first: bool, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([f"{option}=", "stop", "1"] if first else ["stop", "1", option, ""])
    assert ended.value.code == 2 and "it is empty" in capsys.readouterr().err


def test_what_looks_like_nothing_gets_no_guess(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parser().parse_args(["quux"])
    assert "Did you mean" not in capsys.readouterr().err


def test_the_help_has_every_command_once_in_a_group():
    top = parser()
    text = top.format_help()
    assert "positional" not in text and "\ncommands:" not in text
    commands = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    shown = [action.dest for action in commands._choices_actions]
    assert [line.split()[0] for line in text.splitlines() if line[:2] == "  " and line[2:3].isalpha() and
            line.split()[0] in shown] == shown  # fmt: skip
    assert sum(number for _, number in top.groups) == len(shown)
    assert all(f"\n{heading}:\n" in text for heading, _ in top.groups)


def completed(line: str) -> list[str]:
    """What a shell gets for its Tab at the end of a line."""
    asks = os.environ | {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    run = 'exec "$@" 8>&1 9>/dev/null 1>/dev/null'
    said = subprocess.run(
        ["/bin/sh", "-c", run, "sh", sys.executable, "-m", "wanlora_tui.cli"],
        cwd=ROOT,
        env=asks,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return [word.strip() for word in said.stdout.splitlines()]


@pytest.mark.process
def test_a_shell_completes_commands_options_and_fields():
    assert completed("wanlora subm") == ["submit"]
    assert completed("wanlora submit --prio") == ["--priority"]
    assert completed("wanlora se") == ["set"]  # and nothing that wanlora alone asks of another
    assert "training.lr=" in completed("wanlora set orbit training.")
    assert completed("wanlora new --set training.timestep_t") == ["training.timestep_type="]
    assert "training.timestep_type=linear" in completed("wanlora new --set training.timestep_type=")
    assert completed("wanlora new --set datasets[0].flip_x=t") == [r"datasets\[0\].flip_x=true"]
    assert completed("wanlora new --set training.lr=") == completed("wanlora new --set nothing=") == []


@pytest.mark.process
def test_a_shell_completes_the_names_of_jobs(tmp_path: Path):
    with own_daemon() as folder:
        for name in ("orbit", "orange", "style"):
            submit(folder, write_job(tmp_path, name))
        action, at = argparse.Action([], "job"), argparse.Namespace(dir=folder)
        assert completing.job_names("or", action, parser(), at) == ["orange", "orbit"]
        assert completing.job_names("style,or", action, parser(), at) == ["style,orange", "style,orbit"]
        away = argparse.Namespace(dir=folder, host="box")
        assert completing.job_names("", action, parser(), away) == []
    assert completing.job_names("", action, parser(), at) == []


@pytest.mark.process
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell: str):
    said = subprocess.run(
        [sys.executable, "-m", "wanlora_tui.cli", "completion", shell],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "wanlora" in said.stdout and "_ARGCOMPLETE" in said.stdout and said.stderr == ""


def test_a_umask_that_lets_others_in_does_not_stay(tmp_path: Path):
    clips(tmp_path, "a")
    code = "import os, sys; os.umask(0); from wanlora_tui.cli import main; sys.exit(main(sys.argv[1:]))"
    new = ["new", "--kind", "motion", "--clips", "clips", "--out", "made/job.toml"]
    said = subprocess.run(
        [sys.executable, "-c", code, *new], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    assert [path.name for path in (tmp_path / "made", tmp_path / "made/job.toml") if path.stat().st_mode & 0o022] == []
