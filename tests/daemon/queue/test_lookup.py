"""Which job is meant by a name or a number."""

import pytest

from daemon.queue.entry import Entry
from daemon.queue.lookup import by_id, find, note_on
from daemon.wire.protocol import JobRecord
from presets.errors import UserError

# id -> name, state
JOBS = {
    1: ("orbit", "running"),
    2: ("1", "queued"),
    3: ("style", "done"),
    4: ("style", "running"),
    5: ("style", "failed"),
    6: ("last", "queued"),
    7: ("7", "done"),
    8: ("orbit2", "stopped"),
}


@pytest.fixture
def entries() -> dict[int, Entry]:
    return {
        job: Entry(record=JobRecord(id=job, name=name, job_path="/j", out=f"/{job}", gpus=[0], state=state), order=job)
        for job, (name, state) in JOBS.items()
    }


@pytest.mark.parametrize(
    ("key", "job", "note"),
    [
        ("1", 2, "1 means 1 (#2, queued) here, and not orbit (#1, running). To name another one: id:1"),
        ("#1", 1, ""),
        ("id:1", 1, ""),
        ("id:01", 1, ""),
        ("2", 2, ""),
        ("3", 3, ""),
        ("style", 4, "style means style (#4, running) here, and not style (#3, done), style (#5, failed). To name"),
        ("last", 6, ""),
        ("7", 7, ""),
        ("orbit", 1, ""),
    ],
)
def test_who_is_meant(entries, key, job, note):
    found = find(entries, key)
    assert found.record.id == job
    said = note_on(entries, key, found.record)
    assert said.startswith(note) and bool(said) == bool(note)


@pytest.mark.parametrize(
    "key", ["", "orb", "orbit ", "9", "#9", "#", "id:", "id:orbit", "#orbit", "0", "-1", "٥", "9" * 400]
)
def test_nobody_is_meant(entries, key):
    with pytest.raises(UserError, match="no such job"):
        find(entries, key)


def test_of_several_that_have_ended_the_newest(entries):
    entries[4].record.state = "stopped"
    assert find(entries, "style").record.id == 5


def test_many_of_one_name_are_not_all_listed():
    many = {
        job: Entry(record=JobRecord(id=job, name="x", job_path="/j", out="/", gpus=[0], state="done"), order=job)
        for job in range(1, 9)
    }
    assert "x (#5, done), x (#6, done), x (#7, done) and 4 more" in note_on(many, "x", many[8].record)


def test_what_a_user_types_for_an_id(entries):
    assert (by_id(entries, 1), by_id(entries, 3), by_id(entries, 7)) == ("id:1", "3", "7")
