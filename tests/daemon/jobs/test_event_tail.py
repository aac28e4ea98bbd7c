"""Following a file that is being written, torn, damaged, emptied."""

from pathlib import Path

import msgspec
import pytest

from daemon.jobs.event_tail import INDEX_EVERY, Tail
from daemon.wire.protocol import MAX_EVENT_BYTES, REPLAY_PAGE, encode
from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_event


def log_event(seq: int, text: str = "x", *, attempt: int = 1) -> bytes:
    return (
        msgspec.json.encode(
            Event(seq=seq, time=float(seq), run="r", attempt=attempt, kind="log", data={"level": "info", "text": text})
        )
        + b"\n"
    )


def seqs(events: list[Event]) -> list[int]:
    return [e.seq for e in events]


def everything(tail: Tail) -> list[Event]:
    events, more = [], True
    while more:
        page, more = tail.page(events[-1].seq if events else 0)
        events += page
    return events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_events_come_as_they_are_written(path: Path):
    tail = Tail(path.parent)
    assert tail.poll() == [] and tail.page(0) == ([], False)  # no file yet
    path.write_bytes(log_event(1) + log_event(2))
    assert seqs(tail.poll()) == [1, 2] and tail.poll() == []
    with path.open("ab") as f:
        f.write(log_event(3))
    assert seqs(tail.poll()) == [3] and tail.last_seq == 3


def test_a_torn_last_line_waits_at_every_byte_for_its_rest(path: Path):
    head, last = log_event(1), log_event(2, "caf\u00e9")
    for cut in range(len(last)):
        path.write_bytes(head + last[:cut])
        tail = Tail(path.parent)
        assert seqs(tail.poll()) == [1]
        assert tail.poll() == []
        with path.open("ab") as f:
            f.write(last[cut:])
        assert seqs(tail.poll()) == [2]


def test_a_flood_is_read_in_pieces(path: Path):
    path.write_bytes(b"".join(log_event(n) for n in range(1, 101)))
    tail = Tail(path.parent)
    assert [len(tail.poll(40)) for _ in range(4)] == [40, 40, 20, 0]
    assert seqs(everything(tail)) == list(range(1, 101))


DAMAGE = {
    "half a line": b'{"v":1,"seq":3,"time"\n',
    "an empty line": b"\n",
    "binary": b"\x80\x04\x95\xff\xfe\n",
    "not UTF-8": log_event(3, "@@").replace(b"@@", b"\xff\xfe"),
    "a wrong type": b'{"v":1,"seq":"3","time":1,"run":"r","attempt":1,"kind":"log","data":{}}\n',
    "an unknown kind": log_event(3).replace(b'"log"', b'"gossip"'),
    "missing data": log_event(3).replace(b'"level":"info","text":"x"', b""),
    "data of a wrong type": log_event(3).replace(b'"text":"x"', b'"text":7'),
    "a number beyond the wire": log_event(3).replace(b'"level":"info"', b'"level":' + b"9" * 40),
    "deep nesting": b'{"x":' + b"[" * 100_000 + b"\n",
    "an endless line": log_event(3, "x" * (MAX_EVENT_BYTES + 1)),
}


@pytest.mark.parametrize("damaged", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_becomes_a_finding_in_its_place(path: Path, damaged: bytes):
    path.write_bytes(log_event(1) + log_event(2) + damaged + log_event(4) + log_event(5))
    tail = Tail(path.parent)
    events = tail.poll()
    assert seqs(events) == [1, 2, 3, 4, 5]
    assert events[2].kind == "finding" and events[2].data["code"] == "events-damaged"
    assert tail.view.findings == [events[2].data] and len(events[2].data["message"]) < 500
    assert everything(tail) == events == everything(_read_slowly(path))
    assert tail.page(2)[0] == events[2:] and tail.page(3)[0] == events[3:]


def _read_slowly(path: Path) -> Tail:
    tail = Tail(path.parent)
    while tail.poll(1):
        pass
    return tail


def test_many_damaged_lines_are_one_finding_and_a_hole(path: Path):
    path.write_bytes(log_event(1) + b"x\ny\nz\n" + log_event(5))
    tail = Tail(path.parent)
    assert seqs(tail.poll()) == [1, 2, 5]
    assert "3 lines" in tail.view.findings[0]["message"]


def test_damage_that_hides_no_event_takes_no_events_place(path: Path):
    path.write_bytes(log_event(1) + b"junk\n" + log_event(2))
    tail = Tail(path.parent)
    assert seqs(tail.poll()) == [1, 2] and seqs(everything(tail)) == [1, 2]


def test_damage_at_the_end_waits_for_what_follows(path: Path):
    path.write_bytes(log_event(1) + b"junk\n")
    tail = Tail(path.parent)
    assert seqs(tail.poll()) == [1] and tail.poll() == []
    with path.open("ab") as f:
        f.write(log_event(3))
    assert seqs(tail.poll()) == [2, 3]


def test_an_event_told_twice_counts_once(path: Path):
    path.write_bytes(log_event(1) + log_event(2) + log_event(2, "again") + log_event(3))
    tail = Tail(path.parent)
    assert [(e.seq, e.data["text"]) for e in tail.poll()] == [(1, "x"), (2, "x"), (3, "x")]


def test_pages_meet_without_gap_or_overlap(path: Path):
    count = 3 * INDEX_EVERY + 2 * REPLAY_PAGE + 7
    path.write_bytes(b"".join(log_event(n) for n in range(1, count + 1)))
    tail = Tail(path.parent)
    while tail.poll():
        pass
    assert seqs(everything(tail)) == list(range(1, count + 1))
    for since in (0, 1, INDEX_EVERY - 1, INDEX_EVERY, INDEX_EVERY + 1, count - 1):
        page, more = tail.page(since)
        assert seqs(page) == list(range(since + 1, min(since + REPLAY_PAGE, count) + 1)) and more == (
            since + REPLAY_PAGE < count
        )
    assert tail.page(count) == ([], False) and tail.page(-1) == tail.page(0)


def test_a_page_of_large_events_stays_small(path: Path):
    path.write_bytes(b"".join(log_event(n, "x" * 600_000) for n in range(1, 13)))
    tail = Tail(path.parent)
    while tail.poll():
        pass
    page, more = tail.page(0)
    assert more and 1 <= len(page) < 6 and len(encode(page)) < 3 * 2**20
    assert seqs(everything(tail)) == list(range(1, 13))


def test_a_page_holds_only_what_was_published(path: Path):
    path.write_bytes(log_event(1) + log_event(2) + log_event(3))
    tail = Tail(path.parent)
    tail.poll(2)
    assert seqs(tail.page(0)[0]) == [1, 2]


def test_the_fold_is_the_fold_of_the_file(path: Path):
    path.write_bytes(b"".join(log_event(n, attempt=1 + n // 10) for n in range(1, 30)))
    tail = Tail(path.parent)
    view = RunView()
    for event in tail.poll():
        apply_event(view, event)
    assert encode(view) == encode(tail.view)


def test_a_file_begun_anew_is_read_from_its_start(path: Path):
    path.write_bytes(b"".join(log_event(n) for n in range(1, 10)))
    tail = Tail(path.parent)
    tail.poll()
    path.write_bytes(log_event(1, "new"))
    assert [e.data["text"] for e in tail.poll()] == ["new"] and tail.last_seq == 1
