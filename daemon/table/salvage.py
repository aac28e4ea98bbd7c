"""What can be saved of a job table that is not whole: its rows as SQLite still reads them, and those that are found in
the bytes of its pages.

The table is opened and kept in daemon.table.job_store; its file is read past SQLite in daemon.table.table_image.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct, field

from daemon.table.sound_rows import read_row
from daemon.table.table_image import entries_in, in_memory, read_image

MOST_STEPS = 2_000  # of 100,000 instructions of SQLite's: a damaged table can be one that never ends


class Salvaged(Struct):
    """All that is left."""

    jobs: dict[int, bytes] = field(default_factory=dict)  # id -> its row as it is, also one that cannot be read
    answers: list[tuple[bytes, bytes]] = field(default_factory=list)  # (request, answer), oldest first
    facts: dict[bytes, bytes] = field(default_factory=dict)


def salvage(path: Path) -> Salvaged:
    """Raises OSError when not even the file can be read."""
    found = Salvaged()
    pieces = [read_image(path)]  # with the log, without it, and the log by itself
    for name in (path.name, f"{path.name}-wal"):
        with suppress(FileNotFoundError):
            pieces.append(path.with_name(name).read_bytes())
    whole = False
    with suppress(sqlite3.Error, OverflowError):
        db = in_memory(path)
        try:
            whole = _read(db, found)
        finally:
            db.close()
    if not whole:  # removed jobs lie in free pages, too: of a file that can be read they are not wanted
        for job, entry in entries_in(*pieces).items():
            try:
                known = read_row(found.jobs[job]).record.revision if job in found.jobs else -1
            except (ValueError, RecursionError):
                known = -1
            if entry.record.revision > known:
                found.jobs[job] = msgspec.json.encode(entry)
    return found


def _read(db: sqlite3.Connection, found: Salvaged) -> bool:
    """Whether everything was there to be read. What SQLite reads before it meets damage counts."""
    steps = iter(range(MOST_STEPS))
    db.set_progress_handler(lambda: next(steps, None) is None, 100_000)
    db.text_factory = bytes
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT NULL")}
    whole = b"jobs" in tables
    for table, read in (("jobs", _jobs), ("answers", _answers), ("facts", _facts)):
        if table.encode() not in tables:  # a view, say
            continue
        try:
            read(db, found)
        except (sqlite3.Error, OverflowError):
            whole = whole and table != "jobs"
    try:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error:
        return False
    return whole and verdict == b"ok"


def _rows(db: sqlite3.Connection, query: str) -> Iterator[tuple[int | bytes, ...]]:
    """Those with a value in every column."""
    for row in db.execute(query):
        if all(isinstance(value, int | bytes) for value in row):
            yield row


def _jobs(db: sqlite3.Connection, found: Salvaged) -> None:
    for job, text in _rows(db, "SELECT CAST(id AS INTEGER), CAST(entry AS BLOB) FROM jobs"):
        assert isinstance(job, int) and isinstance(text, bytes)
        found.jobs[job] = text


def _answers(db: sqlite3.Connection, found: Salvaged) -> None:
    for request, answer in _rows(db, "SELECT CAST(request AS BLOB), CAST(answer AS BLOB) FROM answers ORDER BY number"):
        assert isinstance(request, bytes) and isinstance(answer, bytes)
        found.answers.append((request, answer))


def _facts(db: sqlite3.Connection, found: Salvaged) -> None:
    for name, value in _rows(db, "SELECT CAST(name AS BLOB), CAST(value AS BLOB) FROM facts"):
        assert isinstance(name, bytes) and isinstance(value, bytes)
        found.facts[name] = value
