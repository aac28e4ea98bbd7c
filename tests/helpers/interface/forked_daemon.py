"""The daemon as a fork of the process that has imported all of it (tests.helpers.interface.commands): each start of it
would take a third of a second of a core for its imports."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from daemon.__main__ import main as serve
from tests.helpers.interface.commands import Command, the_server


def main() -> int:
    """In a session of its own, as whoever starts a daemon gives it one."""
    os.setsid()
    return serve()


def start_daemon(
    arguments: list[str], *, cwd: Path, environment: Mapping[str, str], out: int
) -> "Command | subprocess.Popen[bytes]":
    """`python -m daemon ARGUMENTS` with what it says in a descriptor; in a Python of its own where it needs one."""
    server = the_server()
    if server.own_start(environment):
        command = [sys.executable, "-m", "daemon", *arguments]
        return subprocess.Popen(command, cwd=cwd, env=dict(environment), stdout=out, stderr=out, start_new_session=True)
    return server.start(
        arguments, cwd=cwd, environment=environment, streams=(0, out, out), main=f"{__name__}:{main.__name__}"
    )
