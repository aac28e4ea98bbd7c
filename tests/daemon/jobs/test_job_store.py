"""The job table: it survives, it commits whole, it opens what older versions wrote."""

import sqlite3
from pathlib import Path

import pytest

from daemon.jobs.entry import Entry
from daemon.jobs.job_store import MIGRATIONS, REMEMBERED_ANSWERS, Store
from daemon.processes.proc import ProcessId
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
    store.close()
    again = Store(tmp_path / "db")
    assert again.entries() == [kept, entry(2)] and again.next_id() == 3
    assert again.answer("request") == b"answer" and again.answer("other") is None
    assert again.fact("boot") == "b" and again.fact("nothing") == ""
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


def test_a_file_that_is_no_table_is_refused(tmp_path: Path):
    (tmp_path / "db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError, match="cannot be opened"):
        Store(tmp_path / "db")
