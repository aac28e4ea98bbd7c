"""Standard streams that are terminals of some size, of none, or nothing at all."""

import fcntl
import os
import struct
import subprocess
import sys
import termios

import pytest

from tests.helpers import ROOT
from tests.helpers.interface.harness import environment
from tests.helpers.waiting import PATIENCE
from wanlora_tui.terminal.streams import is_terminal, terminal_width


@pytest.mark.parametrize(
    "columns, told, width", [(120, "", 120), (0, "", 80), (0, "72", 72), (120, "0", 120), (120, "many", 120)]
)
def test_a_terminal_without_a_size_has_the_usual_width(
    columns: int, told: str, width: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", told)
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "w") as stream:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
        assert is_terminal(stream) and terminal_width(stream) == width


def test_what_is_no_terminal_has_no_width():
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        assert not is_terminal(nothing) and terminal_width(nothing) == 0
    assert not is_terminal(None)


@pytest.mark.parametrize(
    "encoding, out", [("ascii", b"+ caf\xe9\n"), ("latin-1", b"+ caf\xe9\n"), ("utf-8", b"\xe2\x9c\x93 caf\xe9\n")]
)
def test_no_encoding_stops_the_output(encoding: str, out: bytes):
    code = "from presets.text import escape_output; escape_output(); print('\u2713 caf\\udce9')"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(PYTHONIOENCODING=encoding),
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (said.stdout, said.stderr) == (out, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_one_that_is_closed_takes_what_is_said_and_its_number_is_not_another_file_s(closed: str):
    code = (
        "import os, sys; from presets.text import escape_output; escape_output(); print('said');"
        " print('said', file=sys.stderr); sys.exit(os.open('/', os.O_RDONLY) < 3)"
    )
    said = subprocess.run(
        ["bash", "-c", f'exec "$1" -c "$2" {closed}', "bash", sys.executable, code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    assert said.returncode == 0 and b"Traceback" not in said.stderr
