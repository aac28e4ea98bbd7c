"""Reading events.jsonl: torn last lines, damaged lines, offsets."""

import msgspec
import pytest

from presets.runs.events import DamagedLine, Event, decode_event, read_events


def line(seq: int, kind: str = "log", **data: object) -> bytes:
    return (
        msgspec.json.encode(Event(seq=seq, time=1.0, run="r", attempt=1, kind=kind, data=data or {"text": f"ü{seq}"}))
        + b"\n"
    )  # type: ignore[arg-type]


def test_all_events_with_their_offsets(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = [line(i) for i in range(1, 6)]
    path.write_bytes(b"".join(lines))
    read = list(read_events(path))
    assert [e.seq for e, _ in read] == [1, 2, 3, 4, 5]
    assert read[-1][1] == path.stat().st_size
    assert [e.seq for e, _ in read_events(path, offset=read[2][1])] == [4, 5]


@pytest.mark.parametrize("cut", [1, 2, 10, -1])
def test_a_torn_last_line_waits_for_its_rest(tmp_path, cut):
    path = tmp_path / "events.jsonl"
    last = line(2)
    path.write_bytes(line(1) + last[:cut])
    read = list(read_events(path))
    assert [e.seq for e, _ in read] == [1]
    path.write_bytes(line(1) + last)
    assert [e.seq for e, _ in read_events(path, offset=read[-1][1])] == [2]


def test_a_torn_line_that_is_whole_json_still_waits(tmp_path):
    """Only the newline says that a line is complete."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(1)[:-1])
    assert list(read_events(path)) == []


BAD = {
    "not an event": b"{}\n",
    "not JSON": b"not json\n",
    "empty": b"\n",
    "an unknown kind": line(2).replace(b'"log"', b'"sing"'),
    "binary": b"\xff\xfe\n",
    "not UTF-8": line(2).replace(b"\xc3", b"\xff"),
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_damaged_line_is_raised_or_reported_with_its_offsets(tmp_path, bad):
    path = tmp_path / "events.jsonl"
    first = line(1)
    path.write_bytes(first + bad + line(3))
    got = []
    with pytest.raises(ValueError, match=f"damaged event at byte {len(first)}"):
        for event, _ in read_events(path):
            got.append(event.seq)
    assert got == [1]
    reported: list[DamagedLine] = []
    assert [e.seq for e, _ in read_events(path, report=reported.append)] == [1, 3]
    assert [(d.begin, d.end) for d in reported] == [(len(first), len(first + bad))]


def test_a_caller_may_decode_more_strictly(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(1) + line(2, text="") + line(3))

    def with_text(line: bytes) -> Event:
        event = decode_event(line)
        event.data["text"][0]
        return event

    reported: list[DamagedLine] = []
    assert [e.seq for e, _ in read_events(path, report=reported.append, decode=with_text)] == [1, 3]
    assert [d.why for d in reported] == ["IndexError string index out of range"]


def test_an_event_of_a_later_version_may_hold_more():
    event = decode_event(
        b'{"v":1,"seq":1,"time":0.5,"run":"r","attempt":1,"kind":"done","data":{"step":1},"more":true}'
    )
    assert event.kind == "done" and event.data == {"step": 1}


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "e").touch()
    assert list(read_events(tmp_path / "e")) == []
    with pytest.raises(FileNotFoundError):
        list(read_events(tmp_path / "none"))
