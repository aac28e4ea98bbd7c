"""What the commands share: the way to the daemon, which job is meant, and how text and tables are printed.

How numbers, times and paths read is in wanlora_tui.output; the terminal itself in wanlora_tui.terminal."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import msgspec

from daemon.wire.client import Client
from daemon.wire.find import find
from daemon.wire.protocol import LIVE_STATES, RUNNING_STATES, JobRecord
from daemon.wire.start import ensure_running
from presets.errors import UserError
from wanlora_tui.output.formatting import home_path
from wanlora_tui.terminal.streams import terminal_width

T = TypeVar("T")


def say(text: str) -> None:
    """Talk goes to stderr, so that stdout holds nothing but data."""
    print(text, file=sys.stderr)


def report_width(stream: TextIO) -> int:
    """Columns for paragraphs: those of the terminal, but no more than read well."""
    return min(100, terminal_width(stream) or 100)


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows, the heading first, in columns. Nothing is cut: a terminal wraps what is too wide for it."""
    from rich.cells import cell_len  # a sign may take two columns; 10 ms, which not every command should pay

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(c + " " * (w - cell_len(c)) for c, w in zip(row, widths, strict=True)).rstrip())


def print_json(value: Any, *, indented: bool = False) -> None:
    data = msgspec.json.encode(value)
    sys.stdout.buffer.write((msgspec.json.format(data) if indented else data) + b"\n")


def ask(folder: Path | None, request: Callable[[Client], Awaitable[T]]) -> T:
    """The answer of the daemon of `folder` to one request. Raises DaemonError."""

    async def go() -> T:
        async with Client(folder) as client:
            return await request(client)

    return asyncio.run(go())


def runtime_folder(folder: Path | None) -> str:
    """Where the daemon's sockets are, as text."""
    return home_path(str(find(folder).where.runtime))


def start_daemon(folder: Path | None) -> bool:
    """Start the daemon if none runs, say so, and wait for its answer. Whether it had to be started. Raises DaemonError,
    as when one is hung."""
    if not ensure_running(folder):
        return False
    say(f"Started the daemon in {runtime_folder(folder)}.")
    return True


def pick_job(jobs: list[JobRecord]) -> JobRecord:
    """The job that is meant when none is named: the newest that runs, else the newest that waits, else the newest.
    Raises UserError."""
    if not jobs:
        raise UserError("no jobs yet", fix="Submit one with: wanlora submit job.toml")
    return max(jobs, key=lambda j: (j.state in RUNNING_STATES, j.state in LIVE_STATES, j.id))
