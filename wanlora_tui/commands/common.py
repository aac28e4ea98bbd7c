"""What the commands share: the way to the daemon, which job is meant, and how text and tables are printed.

How numbers, times and paths read is in wanlora_tui.output; the terminal itself in wanlora_tui.terminal."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import msgspec

from daemon.wire.client import Client
from daemon.wire.find import find
from daemon.wire.protocol import LIVE_STATES, RUNNING_STATES, JobRecord
from daemon.wire.start import ensure_running
from presets.errors import UserError
from presets.look import Look
from presets.text import escaped, escaped_json, write_over
from wanlora_tui.output.far_words import advised, is_away
from wanlora_tui.output.formatting import home_path
from wanlora_tui.terminal.streams import is_dumb, is_terminal, terminal_width

T = TypeVar("T")


def say(text: str) -> None:
    """Talk goes to stderr, so that stdout holds nothing but data."""
    print(advised(text), file=sys.stderr)


def report_width(stream: TextIO) -> int:
    """Columns for paragraphs: those of the terminal, but no more than read well."""
    return min(100, terminal_width(stream) or 100)


def print_table(rows: Sequence[tuple[str, ...]], *, last_below: bool = False) -> None:
    """Print rows, the heading first, in columns. Nothing is cut: a terminal wraps what is too wide for it. With
    `last_below` the last column, which is long, has lines of its own where it does not fit beside the others."""
    from rich.cells import cell_len  # a sign may take two columns; 10 ms, which not every command should pay

    rows = [tuple(escaped(cell).replace("\n", "\\n") for cell in row) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    last_below = last_below and 0 < terminal_width(sys.stdout) < sum(widths) + 2 * (len(widths) - 1)
    for row in rows:
        cells = [c + " " * (w - cell_len(c)) for c, w in zip(row, widths, strict=True)]
        print("  ".join(cells[:-1] if last_below else cells).rstrip())
        if last_below:
            print(f"{' ' * widths[0]}  {row[-1]}")


def print_json(value: Any, *, indented: bool = False) -> None:
    """One value as JSON, in UTF-8 whatever the output's encoding."""
    data = escaped_json(msgspec.json.encode(value))
    sys.stdout.buffer.write((msgspec.json.format(data) if indented else data) + b"\n")
    sys.stdout.buffer.flush()


def ask(folder: Path | None, request: Callable[[Client], Awaitable[T]]) -> T:
    """The answer of the daemon of `folder` to one request. Raises DaemonError."""

    async def go() -> T:
        async with Client(folder, here=not is_away()) as client:
            answer = await request(client)
            if client.note:
                say(client.note)
            return answer

    return asyncio.run(go())


def runtime_folder(folder: Path | None) -> str:
    """Where the daemon's sockets are, as text."""
    return home_path(str(find(folder).where.runtime))


def start_daemon(folder: Path | None) -> bool:
    """Start the daemon if none runs, say so, and wait for its answer. Whether it had to be started. Raises DaemonError,
    as when one is hung."""
    if is_away() or not ensure_running(folder):  # the connection has seen to the one there
        return False
    say(f"Started the daemon in {runtime_folder(folder)}.")
    return True


def pick_job(jobs: list[JobRecord]) -> JobRecord:
    """The job that is meant when none is named: the newest that runs, else the newest that waits, else the newest.
    Raises UserError."""
    if not jobs:
        raise UserError("no jobs yet", fix="Submit one with: wanlora submit job.toml")
    return max(jobs, key=lambda j: (j.state in RUNNING_STATES, j.state in LIVE_STATES, j.id))


@contextmanager
def telling(look: Look) -> Iterator[None]:
    """Say meanwhile how far a look is."""
    over = threading.Event()

    def keep_telling() -> None:
        while not over.wait(0.5):
            of = f"{look.done:,} of {look.total:,} clips" if look.total else f"{look.done:,} files listed"
            tell(f"looking at the clips: {of}, Ctrl+C ends it")

    teller = threading.Thread(target=keep_telling, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
        tell("")


def tell(text: str) -> None:
    """Progress, on a terminal that can write over a line."""
    if is_terminal(sys.stderr) and not is_dumb():
        write_over(text, sys.stderr)
