"""The daemon's log while it runs. In processes of their own: stdout and stderr of this one are pytest's."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers import ROOT

BEGIN = "import os, sys\nfrom pathlib import Path\nfrom daemon.log_file import LogFile\npath = Path(sys.argv[1])\n"


def run(program: str, path: Path, stdout: Path | None = None) -> str:
    with (stdout or path.with_name("own")).open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + program, path],
            cwd=ROOT,
            stdout=out,
            stderr=out if stdout else subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return path.read_text()


GROW = """\
log = LogFile(path{options})
for number in range(100):
    print(f"line {{number}}", file=sys.stderr if number % 2 else sys.stdout, flush=True)
    os.write(2, b"of a library\\n")
    log.keep_small(500)
"""


def test_it_is_begun_anew_when_it_has_grown_and_nothing_of_the_last_part_is_lost(tmp_path: Path):
    path = tmp_path / "daemon.log"
    text = run(GROW.format(options=", take_over=True"), path)
    older = (tmp_path / "daemon.log.1").read_text()
    both = older + text
    assert (
        len(text) <= 530
        and len(older) <= 530
        and sorted(p.name for p in tmp_path.glob("daemon*"))
        == [
            "daemon.log",
            "daemon.log.1",
        ]
    )
    first = int(both.split()[1]) if both.startswith("line") else 0
    assert first > 50 and [f"line {n}" in both for n in range(first, 100)].count(False) == 0
    assert (tmp_path / "own").read_text() == ""


def test_one_that_was_opened_for_it_is_kept_small_too(tmp_path: Path):
    path = tmp_path / "daemon.log"
    assert len(run(GROW.format(options=""), path, stdout=path)) <= 530
    assert (tmp_path / "daemon.log.1").exists()


def test_a_terminal_or_another_file_is_left_alone(tmp_path: Path):
    path = tmp_path / "daemon.log"
    path.write_text("of another\n" * 100)
    assert run(GROW.format(options=""), path, stdout=tmp_path / "elsewhere") == "of another\n" * 100
    assert (tmp_path / "elsewhere").read_text().count("line") == 100 and not (tmp_path / "daemon.log.1").exists()


def test_one_that_was_moved_away_is_made_again(tmp_path: Path):
    path = tmp_path / "daemon.log"
    program = (
        "log = LogFile(path, take_over=True)\nprint('before', flush=True)\npath.rename(f'{path}.old')\n"
        "log.keep_small()\nprint('after', flush=True)\n"
    )
    assert run(program, path) == "after\n" and (tmp_path / "daemon.log.old").read_text() == "before\n"


def test_what_cannot_be_written_ends_nothing(tmp_path: Path):
    path = tmp_path / "daemon.log"
    program = (
        "import logging\nlog = LogFile(path, take_over=True)\nlogging.basicConfig(stream=sys.stderr)\n"
        "full = os.open('/dev/full', os.O_WRONLY)\nos.dup2(full, 1)\nos.dup2(full, 2)\n"
        "logging.error('no room')\nlog.keep_small(0)\nlogging.error('room again')\n"
    )
    assert "room again" in run(program, path)


SAY = "print(*LogFile(path).said, sep='|', file=open(f'{path}.said', 'w'))\n"


@pytest.mark.parametrize(
    "stderr, said",
    [
        ("2>>daemon.log", "FOLDER/daemon.log|"),
        ("2>other", "FOLDER/other|"),
        ("2>/dev/null", "|what it says goes to /dev/null"),
        ("2>&-", "|its stderr is closed"),
        ("2> >(cat)", "|what it says goes to the program that started it"),
    ],
)
def test_it_knows_where_what_is_said_goes(stderr: str, said: str, tmp_path: Path):
    path = tmp_path / "daemon.log"
    done = subprocess.run(
        ["bash", "-c", f'exec {shlex.quote(sys.executable)} -c "$1" "$2" {stderr}', "bash", BEGIN + SAY, path],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0
    assert path.with_name("daemon.log.said").read_text().strip().replace(str(tmp_path), "FOLDER") == said


def test_it_knows_a_terminal(tmp_path: Path):
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "wb") as terminal:
        name = os.ttyname(terminal.fileno())
        subprocess.run([sys.executable, "-c", BEGIN + SAY, tmp_path / "x"], cwd=ROOT, stderr=terminal, check=True)
    assert (tmp_path / "x.said").read_text() == f"|what it says goes to the terminal {name}\n"


def test_one_that_cannot_be_opened_is_told_and_opened_when_it_can_be(tmp_path: Path):
    path = tmp_path / "daemon.log"
    program = (
        "path.symlink_to('elsewhere')\nlog = LogFile(path, take_over=True)\nprint('lost', flush=True)\n"
        "before = log.said\npath.unlink()\nlog.keep_small()\nprint(before.file or 'none', before.why, log.said.file)\n"
    )
    with tempfile.TemporaryFile() as lost:
        subprocess.run([sys.executable, "-c", BEGIN + program, path], cwd=ROOT, stdout=lost, stderr=lost, check=True)
        lost.seek(0)
        assert lost.read() == b"lost\n"
    assert path.read_text() == f"none {path} cannot be opened (Too many levels of symbolic links) {path}\n"
    assert not (tmp_path / "elsewhere").exists()
