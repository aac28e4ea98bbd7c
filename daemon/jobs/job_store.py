"""The job table on disk: SQLite, so that neither a kill -9 nor a power cut leaves half a state behind."""

import sqlite3
from pathlib import Path

import msgspec

from daemon.jobs.entry import Entry
from presets.errors import UserError

REMEMBERED_ANSWERS = 1000  # a retry comes within seconds; this is hours of busy use

_VERSION_1 = """
CREATE TABLE jobs (id INTEGER PRIMARY KEY, entry TEXT NOT NULL);
CREATE TABLE answers (number INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL UNIQUE, answer BLOB NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
MIGRATIONS = [_VERSION_1]  # MIGRATIONS[n] brings schema version n to n + 1; never edit one that was released

_entry_decoder = msgspec.json.Decoder(Entry)


class Store:
    """The daemon's memory. Writes belong to a transaction: `with store: ...` commits them together or not at all."""

    def __init__(self, path: Path) -> None:
        """Open or make the table, bringing an older one up to date. Raises UserError for a newer or damaged one."""
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=0.2)  # a wait here is a wait of every client
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                self._db.close()
                raise UserError(
                    f"was written by a newer wanlora (table version {version}, this one knows {len(MIGRATIONS)})",
                    where=str(path),
                    fix="Upgrade wanlora here",
                )
            for number in range(version, len(MIGRATIONS)):
                self._db.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version={number + 1}; COMMIT;")
        except sqlite3.Error as e:
            raise UserError(
                f"the job table cannot be opened: {e}",
                where=str(path),
                fix="Move it away to start with an empty one; run folders are not touched",
            ) from None

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "Store":
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
        elif self._db.in_transaction:  # SQLite has rolled back by itself when the disk is full
            self._db.execute("ROLLBACK")

    # --- jobs -------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All jobs, by id. Keys of an older version take their defaults, keys of a newer one are passed over."""
        return [_entry_decoder.decode(text) for (text,) in self._db.execute("SELECT entry FROM jobs ORDER BY id")]

    def next_id(self) -> int:
        number: int = self._db.execute("SELECT 1 + coalesce(max(id), 0) FROM jobs").fetchone()[0]
        return number

    def save(self, entry: Entry) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO jobs (id, entry) VALUES (?, ?)",
            (entry.record.id, msgspec.json.encode(entry).decode()),
        )

    # --- answers to requests ----------------------------------------------------------------------------------

    def answer(self, request: str) -> bytes | None:
        """What was answered to the request of this id, so that a repeated one acts once."""
        row = self._db.execute("SELECT answer FROM answers WHERE request = ?", (request,)).fetchone()
        return row[0] if row else None

    def remember(self, request: str, answer: bytes) -> None:
        self._db.execute("INSERT INTO answers (request, answer) VALUES (?, ?)", (request, answer))
        self._db.execute(
            "DELETE FROM answers WHERE number <= (SELECT max(number) FROM answers) - ?", (REMEMBERED_ANSWERS,)
        )

    # --- facts ------------------------------------------------------------------------------------------------

    def fact(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def set_fact(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))
