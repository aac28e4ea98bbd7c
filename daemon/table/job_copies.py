"""The daemon's own copies of job files: written beside the loop, for a disk that is busy may take its time, under
another name, and put in their place when what they are for is decided."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from daemon.table.state_disk import refusal, why_not_writable
from presets.atomic_file import fsync


@asynccontextmanager
async def written_aside(
    text: str, folder: Path, beside: Callable[[Callable[[], None]], Awaitable[None]]
) -> AsyncIterator[Path]:
    """A file of that text, on the disk already, to be renamed; gone at the end when it was not. `beside` does such work
    beside the loop. Raises UserError when the disk takes none."""
    aside, over = folder / f".{os.urandom(4).hex()}.tmp", False

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(text.encode())
        fsync(aside)
        if over:  # nobody has waited for it
            aside.unlink(missing_ok=True)

    try:
        try:
            await beside(write)
        except OSError as e:
            if why := why_not_writable(folder):
                raise refusal(why, folder) from None
            raise e
        yield aside
    finally:
        over = True
        with suppress(OSError):
            aside.unlink()


def tidy(folder: Path) -> None:
    """Remove what a daemon that was killed has left half done."""
    for file in folder.glob(".*.tmp"):
        with suppress(OSError):  # a disk that is read-only
            file.unlink()
