"""The job table on disk: SQLite, so that neither a kill -9 nor a power cut leaves half a state behind.

No state of the disk keeps it from opening. Where nothing can be written it lies in memory until that is possible again;
of a damaged file it takes what can be found and leaves the rest aside (daemon.table.table_image).
"""

import os
import re
import sqlite3
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec

from daemon.queue.entry import Entry
from daemon.table.salvage import Salvaged, salvage
from daemon.table.sound_rows import MAX_ENTRY_BYTES, read_row
from daemon.table.state_disk import why_not_writable
from daemon.table.table_image import in_memory
from presets.errors import UserError

LAST_REMOVED = "last_removed"  # the fact that holds the highest id of those that were removed
REMEMBERED_ANSWERS = 1000  # a retry comes within seconds; this is hours of busy use

_VERSION_1 = """
CREATE TABLE jobs (id INTEGER PRIMARY KEY, entry TEXT NOT NULL);
CREATE TABLE answers (number INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL UNIQUE, answer BLOB NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
MIGRATIONS = [_VERSION_1]  # MIGRATIONS[n] brings schema version n to n + 1; never edit one that was released

HIGHEST_ID = 10**15  # beyond it numbers are damaged
MOST_FACT = 2**16  # bytes
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# what a file leads to whose schema or header says something strange, and sometimes a disk, too
_ODD = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_INTERNAL,
)
_TABLES = ("jobs", "answers", "facts")


class Store:
    """The daemon's memory. Writes belong to a transaction: `with store: ...` commits them together or not at all."""

    def __init__(self, path: Path) -> None:
        """Open or make the table, bringing an older one up to date. Raises UserError for a newer one, and for one that
        cannot even be read."""
        self.path = path
        self.unwritable = ""  # why it is kept in memory alone
        self.unreadable: dict[int, str] = {}  # id -> what is known of a row that cannot be read; it stays as it is
        self._rows: dict[int, bytes | None] = {}  # those committed so far, as `holds` compares them; None: none
        self._written: dict[int, bytes | None] = {}  # the same of the transaction under way
        try:
            self._db = self._open()
        except sqlite3.Error as e:
            self.unwritable = why_not_writable(path.parent) or str(e)
            self._db = self._in_memory()

    def close(self) -> None:
        self._db.close()

    def _open(self) -> sqlite3.Connection:
        """Raises UserError, and sqlite3.Error when it cannot be written."""
        try:
            return _opened(self.path)
        except sqlite3.Error as e:
            if not _is_damage(e, self.path):
                raise
        self._set_aside()
        return _opened(self.path)

    def _in_memory(self) -> sqlite3.Connection:
        """Raises UserError."""
        try:
            try:
                db = in_memory(self.path)
                _bring_up_to_date(db, self.path)
                _require_whole(db)
            except sqlite3.DatabaseError:  # damaged, too
                db = sqlite3.connect(":memory:", isolation_level=None)
                _bring_up_to_date(db, self.path)
                _fill(db, salvage(self.path))
            return db
        except OSError as e:
            raise UserError(
                f"the job table cannot be read: {e.strerror or e}",
                where=str(self.path),
                fix="Correct its permissions, or use another directory with --dir; run folders are not touched",
            ) from None

    def _set_aside(self) -> None:
        """Begin anew with what can be found in a damaged file, which stays under another name. Raises sqlite3.Error
        when that cannot be written."""
        kept = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        while kept.exists():  # twice in one second
            kept = kept.with_name(f"{kept.name}_")
        fresh = self.path.with_name(f"{self.path.name}.new")
        for suffix in ("", "-wal", "-shm"):
            Path(f"{fresh}{suffix}").unlink(missing_ok=True)
        try:
            found = salvage(self.path)
            db = _opened(fresh)
            try:
                with suppress(sqlite3.Error):
                    db.execute("PRAGMA journal_mode=DELETE")  # in one file
                _fill(db, found)
            finally:
                db.close()
            for suffix in ("-wal", "-shm", ""):
                with suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").rename(f"{kept}{suffix}")
            fresh.rename(self.path)
        except OSError as e:
            raise sqlite3.OperationalError(str(e)) from None

    def damaged_files(self) -> list[Path]:
        """Older tables that could not be read whole, for as long as nobody has removed them."""
        found = self.path.parent.glob(f"{self.path.name}.damaged-*")
        return sorted(f for f in found if not f.name.endswith(("-wal", "-shm")))

    def notice_removal(self) -> None:
        """Where somebody has removed the file, what is in it would end with this process: from now on the table is kept
        in memory, until it is written back."""
        if self.unwritable or self.path.exists():
            return
        memory = sqlite3.connect(":memory:", isolation_level=None)
        self._db.backup(memory)
        self._db.close()
        self._db, self.unwritable = memory, "it was removed"

    def write_back(self) -> None:
        """Bring a table that is kept in memory to the disk, if that is possible by now."""
        if not self.unwritable:
            return
        try:
            db = self._open()
        except (sqlite3.Error, UserError) as e:
            self.unwritable = why_not_writable(self.path.parent) or str(e)
            return
        try:
            db.execute("BEGIN IMMEDIATE")
            self._db.text_factory = _text  # also a text that is damaged is copied
            for table, columns in zip(_TABLES, ("id, entry", "number, request, answer", "name, value"), strict=True):
                db.execute(f"DELETE FROM {table}")
                rows = self._db.execute(f"SELECT {columns} FROM {table}").fetchall()
                if rows:
                    db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
            db.execute("COMMIT")
        except sqlite3.Error as e:
            db.close()
            self.unwritable = why_not_writable(self.path.parent) or str(e)
            return
        self._db.close()
        self._db, self.unwritable = db, ""

    def __enter__(self) -> "Store":
        self._written = {}
        self._db.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._rows |= self._written
        elif self._db.in_transaction:  # SQLite has rolled back by itself when the disk is full
            self._db.execute("ROLLBACK")

    # --- jobs -------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All jobs that can be read, by id; the others are in `unreadable`. Keys of an older version take their
        defaults, keys of a newer one are passed over."""
        found, self.unreadable = [], {}
        query = f"SELECT id, substr(CAST(entry AS BLOB), 1, {MAX_ENTRY_BYTES + 1}) FROM jobs ORDER BY id"
        for number, text in self._db.execute(query):
            try:
                entry = read_row(text or b"")
                if entry.record.id != number:
                    raise ValueError(f"it is of job {entry.record.id}")
                found.append(entry)
            except (ValueError, RecursionError) as e:
                name = re.search(rb'"name":"([A-Za-z0-9._-]{1,64})"', (text or b"")[:MAX_ENTRY_BYTES])
                self.unreadable[number] = f"{f'({name[1].decode()}) ' if name else ''}cannot be read: {e}"
        return found

    def next_id(self) -> int:
        """No job has it or had it, also none that was removed: its number is in markers of processes, and clients
        remember its record."""
        query = f"SELECT 1 + coalesce(max(id), 0) FROM jobs WHERE id BETWEEN 0 AND {HIGHEST_ID}"
        number: int = max(self._db.execute(query).fetchone()[0], 1 + self._last_removed())
        while self._db.execute("SELECT 1 FROM jobs WHERE id = ?", (number,)).fetchone():  # one that is damaged
            number += 1
        return number

    def holds(self, entry: Entry) -> bool:
        """Whether this opening of the table has committed a job as it is, but for when it is expected to start and to
        end: that is reckoned anew all the time, and nothing is committed for it alone."""
        return self._rows.get(entry.record.id) == _lasting(entry)

    def save(self, entry: Entry) -> None:
        self._written[entry.record.id] = _lasting(entry)
        self._db.execute(
            "INSERT OR REPLACE INTO jobs (id, entry) VALUES (?, ?)",
            (entry.record.id, msgspec.json.encode(entry).decode()),
        )

    def forget(self, job: int) -> None:
        if job > self._last_removed():
            self.set_fact(LAST_REMOVED, str(job))
        self._written[job] = None
        self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def _last_removed(self) -> int:
        """0 for none, and for a number that is damaged: it must not keep every later job out."""
        text = self.fact(LAST_REMOVED)
        return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0

    # --- answers to requests ----------------------------------------------------------------------------------

    def answer(self, request: str) -> bytes | None:
        """What was answered to the request of this id, so that a repeated one acts once."""
        row = self._db.execute("SELECT CAST(answer AS BLOB) FROM answers WHERE request = ?", (request,)).fetchone()
        return row[0] if row else None

    def remember(self, request: str, answer: bytes) -> None:
        # a number of our own: that of SQLite is no more to be had when the highest there can be was given once
        self._db.execute(
            "INSERT INTO answers (number, request, answer) VALUES ((SELECT 1 + coalesce(max(number), 0) FROM answers),"
            " ?, ?)",
            (request, answer),
        )
        self._db.execute(
            "DELETE FROM answers WHERE number <= (SELECT max(number) FROM answers) - ?", (REMEMBERED_ANSWERS,)
        )

    # --- facts ------------------------------------------------------------------------------------------------

    def fact(self, name: str) -> str:
        """ "" for none, and for one that is damaged."""
        query = f"SELECT substr(CAST(value AS BLOB), 1, {MOST_FACT + 1}) FROM facts WHERE name = ?"
        row = self._db.execute(query, (name,)).fetchone()
        value = (row and row[0]) or b""  # of an empty one substr() makes NULL
        try:
            return value.decode() if len(value) <= MOST_FACT else ""
        except UnicodeDecodeError:
            return ""

    def set_fact(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))


def _lasting(entry: Entry) -> bytes:
    record = msgspec.structs.replace(entry.record, starts_at=None, ends_at=None)
    return msgspec.json.encode(msgspec.structs.replace(entry, record=record))


def _opened(path: Path) -> sqlite3.Connection:
    """Open and whole, and it can be written at this moment. Raises sqlite3.Error, and UserError for a newer one."""
    db = sqlite3.connect(path, isolation_level=None, timeout=0.2)  # a wait here is a wait of every client
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        _bring_up_to_date(db, path)
        _require_whole(db)
        _number_anew(db)
        db.execute("INSERT OR REPLACE INTO facts (name, value) VALUES ('opened', ?)", (str(time.time()),))
    except BaseException:
        db.close()
        raise
    return db


def _bring_up_to_date(db: sqlite3.Connection, path: Path) -> None:
    """Raises UserError for a newer one, sqlite3.DatabaseError for one whose version is not true."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise UserError(
            f"was written by a newer wanlora (table version {version}, this one knows {len(MIGRATIONS)})",
            where=str(path),
            fix="Upgrade wanlora here",
        )
    if version < 0 or (version == 0 and db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]):
        raise sqlite3.DatabaseError("its version is lost")
    for number in range(version, len(MIGRATIONS)):
        db.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version={number + 1}; COMMIT;")


def _schema(db: sqlite3.Connection) -> set[tuple[str, ...]]:
    """Everything in it, but for what SQLite makes by itself."""
    rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT GLOB 'sqlite_*'")
    return {(*map(str, row[:3]), " ".join(str(row[3]).split())) for row in rows}


@cache
def _true_schema() -> frozenset[tuple[str, ...]]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    _bring_up_to_date(db, Path())
    found = frozenset(_schema(db))
    db.close()
    return found


def _require_whole(db: sqlite3.Connection) -> None:
    """Nothing is missing, and there is nothing else, such as a trigger. Raises sqlite3.DatabaseError."""
    if _schema(db) != _true_schema():
        raise sqlite3.DatabaseError("its tables are not those that wanlora makes")
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _number_anew(db: sqlite3.Connection) -> None:
    """Where the numbers of answers have come to what there can be no more after, as only damage does."""
    if (db.execute("SELECT max(number) FROM answers").fetchone()[0] or 0) < HIGHEST_ID:
        return
    rows = db.execute("SELECT request, answer FROM answers ORDER BY number").fetchall()
    numbered = [(number, *row) for number, row in enumerate(rows, 1)]
    db.execute("BEGIN")
    db.execute("DELETE FROM answers")
    db.executemany("INSERT INTO answers (number, request, answer) VALUES (?, ?, ?)", numbered)
    db.execute("COMMIT")


def _fill(db: sqlite3.Connection, found: Salvaged) -> None:
    """Texts become text again where they can."""
    db.execute("BEGIN")
    db.executemany("INSERT INTO jobs (id, entry) VALUES (?, ?)", [(job, _text(row)) for job, row in found.jobs.items()])
    answers = enumerate({_text(request): answer for request, answer in found.answers}.items(), 1)
    db.executemany("INSERT INTO answers (number, request, answer) VALUES (?, ?, ?)", [(n, *a) for n, a in answers])
    facts = {_text(name): _text(value) for name, value in found.facts.items()}
    db.executemany("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", facts.items())
    db.execute("COMMIT")


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _is_damage(error: sqlite3.Error, path: Path) -> bool:
    """Whether the file itself is bad. That nothing can be written has other codes, or shows when something else is
    written there."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return type(error) is sqlite3.DatabaseError
    if code & 0xFF in _DAMAGED:
        return True
    return code & 0xFF in _ODD and os.access(path, os.R_OK | os.W_OK) and not why_not_writable(path.parent)
