"""What the look at every frame found, kept on disk: `check`, `submit` and each attempt of a run need not decode the
same clips again.

A convenience: where it cannot be read or written, clips are decoded once more.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from presets.caches.cache_files import caches_dir

VERSION = 2  # of the look: rises when it would find more, or other cuts
MOST = 100_000  # entries, two a clip; the ones looked at longest ago go first
PATIENCE = 2.0  # seconds for another process that writes
_TABLE = (
    "CREATE TABLE IF NOT EXISTS scans (path TEXT PRIMARY KEY, version INTEGER, size INTEGER, mtime INTEGER, cuts TEXT)"
)


class Identity(Struct, frozen=True):
    """A file as it is now. Another content has another identity."""

    path: str
    size: int
    mtime: int  # nanoseconds


def identity_of(path: str) -> Identity:
    """Raises OSError."""
    status = Path(path).stat()
    return Identity(path, status.st_size, status.st_mtime_ns)


def of_mask(file: Identity) -> Identity:
    """The file as a loss mask: what is kept of it is not its cuts but its darkest and its brightest shade."""
    return Identity(f"{file.path} as a mask", file.size, file.mtime)


def as_print(file: Identity) -> Identity:
    """The file as pictures: what is kept of it is its print (presets.clips.likeness.alike)."""
    return Identity(f"{file.path} as pictures", file.size, file.mtime)


def scans_file() -> Path:
    return caches_dir() / "scans.sqlite"


def known_cuts(file: Identity) -> list[int] | None:
    """The cuts of a clip that was found to be whole; None when this content of it was not looked at."""
    if not scans_file().exists():
        return None
    with suppress(sqlite3.Error, msgspec.MsgspecError), _opened() as db:
        row = db.execute(
            "SELECT cuts FROM scans WHERE path = ? AND version = ? AND size = ? AND mtime = ?",
            (file.path, VERSION, file.size, file.mtime),
        ).fetchone()
        return msgspec.json.decode(row[0], type=list[int]) if row else None
    return None


def keep_cuts(file: Identity, cuts: list[int]) -> None:
    """Remember that a clip is whole, and its cuts."""
    with suppress(OSError):
        scans_file().parent.mkdir(parents=True, exist_ok=True)
        try:
            with _opened() as db:
                db.execute(
                    "INSERT OR REPLACE INTO scans VALUES (?, ?, ?, ?, ?)",
                    (file.path, VERSION, file.size, file.mtime, msgspec.json.encode(cuts).decode()),
                )
                db.execute("DELETE FROM scans WHERE rowid <= (SELECT max(rowid) FROM scans) - ?", (MOST,))
        except sqlite3.OperationalError:  # locked for long, or no room
            return
        except sqlite3.DatabaseError:  # damaged: the next one begins anew
            scans_file().unlink(missing_ok=True)


def forget_scans() -> None:
    """Raises OSError."""
    scans_file().unlink(missing_ok=True)


@contextmanager
def _opened() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(scans_file(), timeout=PATIENCE)) as db, db:
        db.execute(_TABLE)
        yield db
