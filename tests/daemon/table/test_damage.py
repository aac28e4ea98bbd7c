"""A job table that anything may have happened to: the daemon's table opens, keeps what it cannot use aside, and holds
every job that can still be read."""

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.queue.entry import Entry
from daemon.table.job_store import Store
from daemon.table.salvage import salvage
from daemon.table.table_image import entries_in
from daemon.wire.protocol import JobRecord

JOBS = 40


def entry(job: int, **values) -> Entry:
    record = JobRecord(id=job, name=f"job{job}", job_path="/j.toml", out="/runs", gpus=[0], state="queued")
    return Entry(record=record, order=job, **values)


def filled(path: Path) -> None:
    store = Store(path)
    with store:
        for job in range(1, JOBS + 1):
            store.save(entry(job))
        store.remember("request", b"answer")
        store.set_fact("boot", "9c0f")
    store.close()


def changed(path: Path, *statements: str) -> None:
    """What somebody does with another program."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def works(path: Path) -> list[int]:
    """Open it as a daemon does, use it, and open it again. Gives the jobs that were there."""
    store = Store(path)
    try:
        assert not store.unwritable
        there = [e.record.id for e in store.entries()]
        for fact in ("boot", "paused", "last_removed"):
            store.fact(fact)
        store.answer("request")
        job = store.next_id()
        assert job not in there and job not in store.unreadable
        with store:
            store.save(entry(job))
            store.remember("another", b"one")
            store.set_fact("boot", "next")
        kept = dict(store.unreadable)
    finally:
        store.close()
    again = Store(path)
    assert [e.record.id for e in again.entries()] == sorted([*there, job]) and again.unreadable == kept
    assert again.answer("another") == b"one" and again.fact("boot") == "next" and again.next_id() > job
    again.close()
    return there


DONE_TO_IT = {
    "its version is 0": ["PRAGMA user_version=0"],
    "its version is -1": ["PRAGMA user_version=-1"],
    "a trigger that refuses facts": [
        "CREATE TRIGGER t BEFORE INSERT ON facts BEGIN SELECT RAISE(ABORT, 'no'); END",
    ],
    "a trigger that refuses jobs": ["CREATE TRIGGER t BEFORE INSERT ON jobs BEGIN SELECT RAISE(FAIL, 'no'); END"],
    "a trigger that empties it": ["CREATE TRIGGER t AFTER INSERT ON facts BEGIN DELETE FROM jobs; END"],
    "an index on nothing of ours": ["CREATE UNIQUE INDEX i ON jobs (entry)"],
    "a table more": ["CREATE TABLE more (x)"],
    "a column more": ["ALTER TABLE jobs ADD COLUMN more TEXT"],
    "a column less": ["ALTER TABLE answers RENAME COLUMN answer TO other"],
    "no facts": ["DROP TABLE facts"],
    "facts that are a view": ["DROP TABLE facts", "CREATE VIEW facts AS SELECT 'boot' AS name, 'x' AS value"],
    "answers without end": [
        "DROP TABLE answers",
        "CREATE VIEW answers (number, request, answer) AS"
        " WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, i, i FROM n",
    ],
    "text in the place of an answer": ["UPDATE answers SET answer = 'x', request = 5"],
    "the last number for an answer": ["UPDATE answers SET number = 9223372036854775807"],
    "a count of answers that is none": ["UPDATE sqlite_sequence SET seq = 'x'"],
    "the highest count of answers": ["UPDATE sqlite_sequence SET seq = 9223372036854775807"],
    "no count of answers": ["DELETE FROM sqlite_sequence"],
    "blobs for facts": ["UPDATE facts SET value = x'ff00'"],
    "texts for facts that are none": ["UPDATE facts SET value = CAST(x'ff00' AS TEXT)"],
    "a huge fact": ["UPDATE facts SET value = CAST(zeroblob(5000000) AS TEXT)"],
    "numbers that are texts": [
        "CREATE TABLE kept AS SELECT CAST(id AS TEXT) AS id, CAST(entry AS BLOB) AS entry FROM jobs",
        "DROP TABLE jobs",
        "ALTER TABLE kept RENAME TO jobs",
    ],
}


@pytest.mark.parametrize("statements", DONE_TO_IT.values(), ids=DONE_TO_IT)
def test_whatever_was_done_to_it_every_job_is_there(tmp_path: Path, statements: list[str]):
    filled(tmp_path / "db")
    changed(tmp_path / "db", *statements)
    assert works(tmp_path / "db") == list(range(1, JOBS + 1))


def row(job: int, old: str = "", new: str = "") -> str:
    text = (
        msgspec.json.encode(entry(job)).decode().replace(old, new) if old else msgspec.json.encode(entry(job)).decode()
    )
    return "'" + text.replace("'", "''") + "'"


BAD_ROWS = {
    "a huge one": "zeroblob(30000000)",
    "a number": "7.5",
    "a NUL in its folder": row(2, "/runs", "/ru\\u0000ns"),
    "a folder that is not absolute": row(2, "/runs", "runs"),
    "a name that leads elsewhere": row(2, "job2", "../../etc"),
    "an order that none follows": row(2, '"order":2', '"order":9223372036854775807'),
    "a number that no message carries": row(2, '"revision":0', f'"revision":{10**30}'),
    "a time that is none": row(2, '"submitted_at":0.0', '"submitted_at":1e300'),
}  # fmt: skip


@pytest.mark.parametrize("value", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_no_job_can_be_is_named_and_left(tmp_path: Path, value: str):
    filled(tmp_path / "db")
    changed(tmp_path / "db", f"UPDATE jobs SET entry = {value} WHERE id = 2")
    assert works(tmp_path / "db") == [1, *range(3, JOBS + 1)]
    store = Store(tmp_path / "db")
    store.entries()
    assert "cannot be read: " in store.unreadable[2]
    store.close()


@pytest.mark.parametrize("job", [2**63 - 1, 2**62, 10**15, -5])
def test_the_number_of_a_job_that_is_damaged_keeps_no_later_one_out(tmp_path: Path, job: int):
    filled(tmp_path / "db")
    changed(tmp_path / "db", f"INSERT INTO jobs VALUES ({job}, {row(3)})")
    assert works(tmp_path / "db") == list(range(1, JOBS + 1))


def test_of_a_table_that_is_kept_aside_rows_that_cannot_be_read_go_on_too(tmp_path: Path):
    """They may be of a newer version."""
    filled(tmp_path / "db")
    changed(
        tmp_path / "db",
        "UPDATE jobs SET entry = replace(entry, 'queued', 'frozen') WHERE id = 2",
        "PRAGMA user_version=0",
    )
    assert works(tmp_path / "db") == [1, *range(3, JOBS + 1)]
    store = Store(tmp_path / "db")
    store.entries()
    assert list(store.unreadable) == [2] and store.fact("boot") == "next" and store.answer("request") == b"answer"
    store.close()


def test_a_job_that_was_removed_does_not_come_back_with_a_table_that_is_kept_aside(tmp_path: Path):
    filled(tmp_path / "db")
    store = Store(tmp_path / "db")
    with store:
        store.forget(JOBS)
    store.close()
    changed(tmp_path / "db", "PRAGMA user_version=0")
    assert works(tmp_path / "db") == list(range(1, JOBS))


def test_a_header_that_says_the_file_is_only_to_be_read_is_damage(tmp_path: Path):
    filled(tmp_path / "db")
    data = bytearray((tmp_path / "db").read_bytes())
    data[18:20] = b"\x07\x07"
    (tmp_path / "db").write_bytes(data)
    assert works(tmp_path / "db") == list(range(1, JOBS + 1))


@cache
def whole() -> bytes:
    with TemporaryDirectory() as folder:
        filled(Path(folder) / "db")
        return (Path(folder) / "db").read_bytes()


@settings(max_examples=25)
@given(
    holes=st.lists(
        st.tuples(st.integers(0, 120) | st.integers(0, 60_000), st.binary(min_size=1, max_size=300)), max_size=4
    ),
    cut=st.none() | st.integers(0, 60_000),
    log=st.none() | st.binary(max_size=200),
)
def test_whatever_bytes_are_damaged_it_opens_with_all_jobs_that_can_be_read(
    holes: list[tuple[int, bytes]], cut: int | None, log: bytes | None
):
    data = bytearray(whole())
    for at, new in holes:
        at %= len(data)
        data[at : at + len(new)] = new
    del data[cut if cut is not None else len(data) :]
    if len(data) >= 64 and int.from_bytes(data[60:64], signed=True) > 1:
        data[60:64] = b"\0\0\0\1"  # a newer one is refused
    with TemporaryDirectory() as folder:
        path = Path(folder) / "db"
        path.write_bytes(data)
        if log is not None:
            path.with_name("db-wal").write_bytes(log)
        readable, found = set(salvage(path).jobs), set(entries_in(bytes(data)))
        there = works(path)
        kept = salvage(path)
        assert readable | found <= set(kept.jobs) and found <= set(there) <= set(range(1, JOBS + 1))
