"""A program that runs on the other machine, on the terminal of this one: its size, its keys, its colours."""

import os
import subprocess
from collections.abc import Sequence

from wanlora_tui.remote.connection import Connection

# of the terminal that all is drawn on in the end; its size and TERM ssh passes on by itself
_PASSED_ON = ("COLORTERM", "NO_COLOR", "TERM_PROGRAM", "TMUX", "STY")


def wanlora_there(there: Connection, arguments: Sequence[str]) -> list[str]:
    """The command line there of a wanlora that knows by which name its user reaches it."""
    given = [f"{name}={os.environ[name]}" for name in _PASSED_ON if name in os.environ]
    return ["env", *given, there.wanlora, "--via", there.host, *arguments]


def on_terminal(there: Connection, arguments: Sequence[str]) -> int:
    """Run wanlora there on this process's terminal; its exit code, 255 when the line broke. Raises LineLost."""
    # -e none: what is typed is the program's, also a ~ at the beginning of a line
    return subprocess.call(there.command(wanlora_there(there, arguments), "-tt", "-e", "none"))
