"""The job table: it survives, it commits whole, it opens what older versions wrote."""

import random
import resource
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from daemon.processes.proc import ProcessId
from daemon.queue.entry import Entry
from daemon.table.job_store import MIGRATIONS, REMEMBERED_ANSWERS, Store
from daemon.table.table_image import in_memory
from daemon.wire.protocol import JobRecord
from presets.errors import UserError

GOLDEN = Path(__file__).with_name("state_v1.sql")


def entry(job: int = 1, **values) -> Entry:
    return Entry(
        record=JobRecord(id=job, name="one", job_path="/j.toml", out="/runs", gpus=[0, 1], state="running"),
        order=job,
        **values,
    )


def test_everything_survives_a_new_opening(tmp_path: Path):
    kept = entry(resume=True, ending="stop", due=5.0, trainer=ProcessId(7, 8, "boot"), first_seq=9, oom_kills=1)
    store = Store(tmp_path / "db")
    with store:
        store.save(kept)
        store.save(entry(2))
        store.remember("request", b"answer")
        store.set_fact("boot", "a")
        store.set_fact("boot", "b")
        store.set_fact("empty", "")
    store.close()
    again = Store(tmp_path / "db")
    assert again.entries() == [kept, entry(2)] and again.next_id() == 3
    assert again.answer("request") == b"answer" and again.answer("other") is None
    assert again.fact("boot") == "b" and again.fact("nothing") == "" == again.fact("empty")
    again.close()


def test_a_transaction_is_all_or_nothing(tmp_path: Path):
    store = Store(tmp_path / "db")
    with pytest.raises(RuntimeError), store:
        store.save(entry())
        store.remember("request", b"answer")
        raise RuntimeError
    assert store.entries() == [] and store.answer("request") is None
    with store:
        store.save(entry())
    assert len(store.entries()) == 1
    store.close()


def test_what_is_not_committed_is_gone_after_a_kill(tmp_path: Path):
    store = Store(tmp_path / "db")
    with store:
        store.save(entry())
    store._db.execute("BEGIN")
    store.save(entry(2))
    reader = Store(tmp_path / "db")  # as a new daemon would see it
    assert [e.record.id for e in reader.entries()] == [1]
    reader.close()
    store.close()


def test_it_knows_what_it_has_committed(tmp_path: Path):
    store, one = Store(tmp_path / "db"), entry()
    assert not store.holds(one)
    with pytest.raises(RuntimeError), store:
        store.save(one)
        raise RuntimeError
    assert not store.holds(one)
    with store:
        store.save(one)
        store.save(entry(2))
    one.record.starts_at = one.record.ends_at = 7.0
    assert store.holds(one) and store.holds(entry(2)) and not store.holds(entry(3))
    one.record.revision += 1
    assert not store.holds(one)
    with store:
        store.forget(2)
    assert not store.holds(entry(2))
    store.close()


def test_old_answers_are_forgotten_oldest_first(tmp_path: Path):
    store = Store(tmp_path / "db")
    with store:
        for number in range(REMEMBERED_ANSWERS + 5):
            store.remember(f"r{number}", b"")
    assert store.answer("r4") is None and store.answer("r5") == b""
    store.close()


def test_the_table_of_version_1_opens_in_this_version(tmp_path: Path):
    db = sqlite3.connect(tmp_path / "db")
    db.executescript(GOLDEN.read_text())
    db.close()
    store = Store(tmp_path / "db")
    old = store.entries()
    assert [(e.record.name, e.record.state, e.ending) for e in old] == [
        ("orbit", "stopping", "stop"),
        ("style", "queued", ""),
    ]
    assert old[0].trainer == ProcessId(4242, 991, "9c0f") and old[0].first_seq == 12
    assert store.answer("0af3") is not None and store.fact("boot") == "9c0f"
    assert store._db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    store.close()


def test_a_table_of_a_newer_version_is_refused(tmp_path: Path):
    db = sqlite3.connect(tmp_path / "db")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(UserError, match=r"newer wanlora \(table version 99"):
        Store(tmp_path / "db")


def test_a_file_that_is_no_table_is_kept_aside(tmp_path: Path):
    (tmp_path / "db").write_bytes(b"not a database at all" * 100)
    store = Store(tmp_path / "db")
    assert numbers(store) == [] and not store.unwritable
    assert store.damaged_files()[0].read_bytes() == b"not a database at all" * 100
    store.close()


def test_a_removed_job_is_gone_and_its_number_is_not_given_again(tmp_path: Path):
    store = Store(tmp_path / "db")
    with store:
        for job in (1, 2, 3):
            store.save(entry(job))
        store.forget(3)
        store.forget(1)
    store.close()
    again = Store(tmp_path / "db")
    assert [e.record.id for e in again.entries()] == [2] and again.next_id() == 4
    again.close()


# --- rows and files that are damaged --------------------------------------------------------------------------------


def filled(path: Path, jobs: int = 3) -> None:
    store = Store(path)
    with store:
        for n in range(1, jobs + 1):
            store.save(entry(n))
        store.remember("request", b"answer")
        store.set_fact("boot", "9c0f")
    store.close()


def numbers(store: Store) -> list[int]:
    return [e.record.id for e in store.entries()]


GOOD = msgspec.json.encode(entry(2)).decode()
BAD_ROWS = {
    "half of it": GOOD[: len(GOOD) // 2],
    "nothing": "",
    "no text": b"\xff\xfe\x00",
    "a number": 7,
    "a state of a newer version": GOOD.replace('"running"', '"frozen"'),
    "a wrong type": GOOD.replace('"gpus":[0,1]', '"gpus":"all"'),
    "another job": GOOD.replace('"id":2', '"id":1'),
    "deep": '{"record":' + "[" * 100_000,
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_cannot_be_read_is_left_alone_and_the_others_load(tmp_path: Path, row: object):
    filled(tmp_path / "db")
    db = sqlite3.connect(tmp_path / "db")
    db.execute("UPDATE jobs SET entry = ? WHERE id = 2", (row,))
    db.commit()
    db.close()
    for _ in range(2):  # it is said each time, and stays for a version that knows it
        store = Store(tmp_path / "db")
        assert numbers(store) == [1, 3] and list(store.unreadable) == [2] and store.next_id() == 4
        with store:
            store.save(entry(1))
        store.close()
    assert sqlite3.connect(tmp_path / "db").execute("SELECT entry FROM jobs WHERE id = 2").fetchone() == (
        str(row) if row == 7 else row,
    )


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path):
    filled(tmp_path / "db")
    db = sqlite3.connect(tmp_path / "db")
    db.execute("UPDATE jobs SET entry = replace(entry, 'running', 'frozen') WHERE id = 2")
    db.commit()
    db.close()
    store = Store(tmp_path / "db")
    store.entries()
    assert store.unreadable[2].startswith("(one) cannot be read: Invalid enum value")
    store.close()


def damaged(data: bytes, how: str, rng: random.Random) -> bytes:
    page = 4096
    match how:
        case "half":
            return data[: len(data) // 2]
        case "no header":
            return bytes(page) + data[page:]
        case "a hole":
            at = page * rng.randrange(1, len(data) // page)
            return data[:at] + rng.randbytes(page) + data[at + page :]
        case "ends in a page":
            return data[: -page // 2]
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["half", "no header", "a hole", "ends in a page"])
def test_a_damaged_file_is_kept_aside_and_what_can_be_found_in_it_goes_on(tmp_path: Path, how: str):
    path, rng = tmp_path / "db", random.Random(how)
    for _ in range(3):
        filled(path, jobs=200)
        bad = damaged(path.read_bytes(), how, rng)
        path.write_bytes(bad)
        store = Store(path)
        there = numbers(store)
        (aside,) = store.damaged_files()
        assert aside.read_bytes() == bad and ".damaged-20" in aside.name
        assert len(there) > 5 and set(there) < set(range(1, 201)) | {0}
        with store:
            store.save(entry(300))
        store.close()
        again = Store(path)
        assert numbers(again) == [*there, 300] and not again.unwritable
        assert again._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        again.close()
        for file in tmp_path.iterdir():
            file.unlink()


def test_a_file_of_nothing_but_zeros_is_kept_aside_too(tmp_path: Path):
    (tmp_path / "db").write_bytes(bytes(20_000))
    store = Store(tmp_path / "db")
    assert numbers(store) == [] and len(store.damaged_files()) == 1
    store.close()


def test_what_is_in_the_log_alone_is_found_in_a_damaged_file(tmp_path: Path):
    path = tmp_path / "db"
    store = Store(path)
    with store:
        store.save(entry(1))
    newer = entry(1)
    newer.record.revision, newer.record.outcome = 7, "newer"
    with store:
        store.save(newer)
    kept = {name: (tmp_path / name).read_bytes() for name in ("db", "db-wal")}
    store.close()
    assert b"newer" not in kept["db"]
    for name, data in kept.items():
        (tmp_path / name).write_bytes(data)
    path.write_bytes(b"SQLite format 3\0" + bytes(500))
    again = Store(path)
    assert [e.record.outcome for e in again.entries()] == ["newer"]
    again.close()


# --- disks that take nothing ----------------------------------------------------------------------------------------


@pytest.fixture
def files_may_grow_to() -> Iterator[Callable[[int], None]]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ended", ["in order", "by kill -9", "before it had a table"])
def test_where_nothing_can_be_written_it_lies_in_memory_until_it_can(tmp_path: Path, files_may_grow_to, ended: str):
    path, store = tmp_path / "db", None
    expected = [] if ended == "before it had a table" else [1, 2, 3]
    if ended == "in order":
        filled(path)
    elif ended == "by kill -9":
        filled(tmp_path / "other")
        store = Store(tmp_path / "other")
        with store:
            store.save(entry(4))
        for name in ("", "-wal"):  # all that was committed lies in the log
            (tmp_path / f"db{name}").write_bytes((tmp_path / f"other{name}").read_bytes())
        store.close()
        expected = [1, 2, 3, 4]
    files_may_grow_to(100)
    store = Store(path)
    assert "may grow" in store.unwritable and numbers(store) == expected
    assert store.answer("request") == (b"answer" if expected else None)
    with store:
        store.save(entry(9))
        store.remember("second", b"two")
    store.write_back()
    assert store.unwritable and numbers(store) == [*expected, 9]
    files_may_grow_to(resource.RLIM_INFINITY if resource.getrlimit(resource.RLIMIT_FSIZE)[1] < 0 else 2**30)
    store.write_back()
    assert not store.unwritable
    store.close()
    again = Store(path)
    assert numbers(again) == [*expected, 9] and again.answer("second") == b"two" and again.next_id() == 10
    again.close()


def test_a_damaged_file_on_such_a_disk(tmp_path: Path, files_may_grow_to):
    path = tmp_path / "db"
    filled(path, jobs=200)
    path.write_bytes(path.read_bytes()[:60_000])
    files_may_grow_to(100)
    store = Store(path)
    there = numbers(store)
    assert store.unwritable and len(there) > 5 and store.damaged_files() == []
    files_may_grow_to(2**30)
    store.write_back()
    assert not store.unwritable and numbers(store) == there and len(store.damaged_files()) == 1
    store.close()


def test_a_copy_in_memory_holds_what_was_committed_and_no_more(tmp_path: Path):
    db = sqlite3.connect(tmp_path / "db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (x)")
    rng = random.Random(1)
    for n in range(200):
        db.execute("INSERT INTO t VALUES (?)", (rng.randbytes(rng.randrange(9000)),))
        if n == 100:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if n == 150:
            db.execute("DELETE FROM t WHERE rowid % 2")
    want = db.execute("SELECT * FROM t").fetchall()
    db.execute("BEGIN")
    db.execute("INSERT INTO t VALUES (1)")
    copy = in_memory(tmp_path / "db")
    assert copy.execute("SELECT * FROM t").fetchall() == want
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    main, wal = ((tmp_path / name).read_bytes() for name in ("db", "db-wal"))
    db.execute("ROLLBACK")
    db.close()
    (tmp_path / "db").write_bytes(main)
    for cut in (0, 31, 32, 5000, len(wal) - 1):  # a power cut: the last whole commit counts
        (tmp_path / "db-wal").write_bytes(wal[:cut])
        in_memory(tmp_path / "db").execute("SELECT count(*) FROM sqlite_schema")


@pytest.mark.parametrize("value", ["'x'", "x'ff'", "'9223372036854775807'", "'-5'"])
def test_a_damaged_number_of_the_last_removed_job_keeps_no_later_one_out(tmp_path: Path, value: str):
    store = Store(tmp_path / "db")
    with store:
        store.save(entry(7))
        store._db.execute(f"INSERT INTO facts VALUES ('last_removed', {value})")
    assert store.next_id() == 8
    with store:
        store.save(entry(8))
        store.forget(8)
    assert store.next_id() == 9
    store.close()


def test_a_table_that_lacks_a_column_is_kept_aside(tmp_path: Path):
    store = Store(tmp_path / "db")
    with store:
        store.save(entry(7))
    store.close()
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("ALTER TABLE facts RENAME COLUMN value TO other")
    db.close()
    store = Store(tmp_path / "db")
    assert [e.record.id for e in store.entries()] == [7] and store.fact("paused") == ""
    assert len(store.damaged_files()) == 1
    store.close()


def test_a_table_that_is_removed_while_it_is_open_is_written_anew(tmp_path: Path):
    store = Store(tmp_path / "db")
    with store:
        store.save(entry(7))
    store.notice_removal()
    assert not store.unwritable
    for file in tmp_path.iterdir():
        file.unlink()
    store.notice_removal()
    assert store.unwritable == "it was removed"
    with store:
        store.save(entry(8))
    store.write_back()
    assert not store.unwritable
    with store:
        store.save(entry(9))
    store.close()
    again = Store(tmp_path / "db")
    assert [e.record.id for e in again.entries()] == [7, 8, 9]
    again.close()
