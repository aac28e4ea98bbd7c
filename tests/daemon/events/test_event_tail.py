"""Following a file that is being written, torn, damaged, emptied."""

import os
from fcntl import F_GETFL, fcntl
from pathlib import Path

import msgspec
import pytest

from daemon.events import event_lines
from daemon.events.event_tail import INDEX_EVERY, Tail
from daemon.wire.protocol import MAX_EVENT_BYTES, REPLAY_PAGE, RunEvent, encode, feed_decoder
from presets.runs.event_data import StepLine
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


def taken_now(tail: Tail) -> list[Event] | None:
    """What was just written, which counts by that; None when it must be asked for."""
    block = tail.read_now()
    return None if block is None else list(tail.take(tail.batch_now(block)))


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


def test_a_pipe_in_its_place_is_an_error_and_nobody_waits_for_it(path: Path):
    os.mkfifo(path)
    for read in (Tail(path.parent).fold, Tail(path.parent).poll):
        with pytest.raises(OSError, match="it is a named pipe"):
            read()


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


def test_what_was_just_written_is_read_at_once_and_all_else_is_asked_for(path: Path, monkeypatch):
    tail = Tail(path.parent)
    path.write_bytes(log_event(1))
    assert taken_now(tail) is None, "which file it is must be looked at first"
    assert seqs(tail.poll()) == [1]
    with path.open("ab") as f:
        f.write(log_event(2) + log_event(3)[:20])
        f.flush()
        assert seqs(taken_now(tail)) == [2]
        assert taken_now(tail) == []
        f.write(log_event(3)[20:])
    with monkeypatch.context() as there:
        there.setattr(os, "preadv", lambda *_: os.read(-1, 1))  # as where it would have to wait, or cannot say
        assert taken_now(tail) is None
    assert seqs(taken_now(tail)) == [3]
    with path.open("ab") as f:
        f.write(b"".join(log_event(n, 100 * "x") for n in range(4, 300)))
    assert taken_now(tail) is None and len(tail.poll()) == 296
    path.write_bytes(b"".join(log_event(n, "another") for n in range(1, 500)))
    assert taken_now(tail) is None and seqs(tail.poll())[0] == 1
    assert encode(tail.view) == encode(folded(everything(tail)))


def test_a_look_at_a_file_is_not_written_down_beside_it(path: Path):
    """Else the disk would be written to with every look at a run, of which there are many in a second."""
    path.write_bytes(log_event(1))
    tail = Tail(path.parent)
    assert seqs(tail.poll()) == [1] and tail._file is not None
    assert fcntl(tail._file[1].fileno(), F_GETFL) & os.O_NOATIME


def step_event(seq: int, **data) -> bytes:
    data = {"step": seq, "expert": "low_noise", "loss": 0.5, "lr": 1e-4, "grad_norm": 0, "timestep": 1.0} | data
    data |= {"seconds": {"total": 2, "data": 0.5}, "vram_gib": 0.0, "ram_gib": 0.0}
    event = Event(seq=seq, time=float(seq), run="r", attempt=1, kind="step", data=data)
    return msgspec.json.encode(event) + b"\n"


def test_steps_that_were_just_written_are_sent_as_what_they_are(path: Path):
    tail = Tail(path.parent)
    path.write_bytes(step_event(1))
    sent = [*tail.poll()]

    def write(*lines: bytes) -> list:
        with path.open("ab") as f:
            f.write(b"".join(lines))
        taken = taken_now(tail)
        assert taken is not None
        sent.extend(feed_decoder.decode(encode(RunEvent(1, event))).event for event in taken)
        return [type(event) for event in taken]

    assert write(step_event(2, parts={"flow": 0.25}, clips=["a", 3]), step_event(3)) == [StepLine, StepLine]
    assert write(step_event(4), log_event(5)) == [StepLine, Event]  # of another kind
    assert write(step_event(6, new=[1])) == [Event]  # by a newer version
    assert write(step_event(7), b"?\n", step_event(9)) == [Event, Event, Event]  # a line is damaged
    assert write(step_event(10), step_event(11).replace(b'"total":2,', b"")) == [Event]
    assert write(step_event(11)) == [Event]  # with the damaged line before it
    assert write(step_event(12)) == [StepLine] and tail.offset == path.stat().st_size
    others = Tail(path.parent)
    assert others.poll() == everything(tail) == sent and seqs(sent) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert encode(tail.view) == encode(others.view) == encode(folded(sent))


def test_files_that_are_read_together_say_what_each_says(tmp_path: Path):
    """Those that were just written to, as the live reader reads them: or none of them, when one says what is rare."""
    tails, sent = [Tail(tmp_path / str(n)) for n in range(3)], [[], [], []]
    for n in range(3):
        tails[n].path.parent.mkdir()

    def together(*lines: bytes) -> bool:
        for tail, added in zip(tails, lines, strict=True):
            with tail.path.open("ab") as f:
                f.write(added)
        blocks = [(tail.read_now(), tail.last_seq) for tail in tails]
        found = event_lines.read_together(blocks)
        for n, (tail, (block, _)) in enumerate(zip(tails, blocks, strict=True)):
            got = tail.take(tail.batch_now(block)) if found is None else tail.take_lines(found[n], block)
            sent[n] += [feed_decoder.decode(encode(RunEvent(n, event))).event for event in got]
        return found is not None

    for n, tail in enumerate(tails):
        tail.path.write_bytes(step_event(1, loss=n))
        sent[n] += tail.poll()
    assert together(step_event(2), b"", step_event(2) + log_event(3) + step_event(4, clips=["a"]))
    assert together(step_event(3)[:40], step_event(2), b"")
    assert together(step_event(3)[40:], step_event(3) + step_event(4), step_event(5))
    assert not together(step_event(4), step_event(5, new=1), step_event(6)), "by a newer version"
    assert not together(step_event(5), b"?\n" + step_event(7), step_event(7)), "a line is damaged"
    assert not together(b"\n" + step_event(6), step_event(8), step_event(8)), "a line is empty"
    assert not together(step_event(7), step_event(8), step_event(9)), "an event is told twice"
    assert not together(step_event(8), step_event(10), step_event(10)), "an event is missing"
    assert not together(step_event(9), step_event(11) + b"\n", step_event(11))
    assert not together(step_event(10), step_event(12), step_event(12)), "the empty line waited for what follows"
    assert together(step_event(11), step_event(13), step_event(13))
    for n, tail in enumerate(tails):
        others = Tail(tail.run_dir)
        assert others.poll() == everything(tail) == sent[n] and tail.offset == tail.path.stat().st_size
        assert encode(tail.view) == encode(others.view) == encode(folded(sent[n]))
        assert tail._seen == tail.path.read_bytes()[-event_lines.SEEN_BYTES :]


def folded(events: list[Event]) -> RunView:
    view = RunView()
    for event in events:
        apply_event(view, event)
    return view


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


def test_a_longer_one_is_read_from_its_start_too_where_it_was_missing_between(path: Path):
    path.write_bytes(log_event(1))
    tail = Tail(path.parent)
    tail.poll()
    path.unlink()
    assert tail.poll() == [] and tail.last_seq == 0
    path.write_bytes(b"".join(log_event(n, "new") for n in range(1, 10)))
    assert [e.seq for e in tail.poll()] == list(range(1, 10))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("folded", [True, False])
def test_a_longer_one_in_its_place_is_read_from_its_start(path: Path, in_place: bool, folded: bool):
    path.write_bytes(b"".join(log_event(seq) for seq in range(1, 20)))
    tail = Tail(path.parent)
    assert tail.fold() if folded else tail.poll()
    new = path if in_place else path.with_name("new")
    new.write_bytes(b"".join(log_event(seq, "another") for seq in range(1, 40)))
    new.rename(path)
    assert tail.fold() if folded else seqs(tail.poll()) == list(range(1, 40))
    assert {line.text for line in tail.view.log} == {"another"}
    assert seqs(everything(tail)) == list(range(1, 40))


@pytest.mark.parametrize("junk", [b"x" * (3 * MAX_EVENT_BYTES), b"nonsense\n" * 200_000], ids=["one line", "many"])
def test_an_end_that_cannot_be_read_is_not_read_again_and_again(
    path: Path, junk: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    reads = []
    monkeypatch.setattr(event_lines, "read_lines", lambda *args, **more: reads.append(1) or real(*args, **more))
    tail = Tail(path.parent)
    path.write_bytes(log_event(1) + junk)
    assert seqs(tail.poll()) == [1]
    for _ in range(5):
        assert tail.poll() == []
    assert len(reads) == 2 and caplog.text.count("holds nothing that can be read from byte") == 1
    with path.open("ab") as f:
        f.write(b"\n" + log_event(2) + log_event(3))
    assert seqs(tail.poll())[-1] == 3


real = event_lines.read_lines
