import resource

import msgspec
import pytest

from engine.runfolder.event_log import EventLog
from engine.runfolder.resume import read_history
from engine.system import fault_injection
from presets.runs.events import read_events


def emit(folder, *kinds):
    seen = []
    log = EventLog(folder, listener=seen.append, clock=lambda: 5.0)
    for kind in kinds:
        log.emit(kind, text=kind)
    log.close()
    return log, seen


def test_seq_goes_on_without_gaps_across_attempts(tmp_path):
    first, _ = emit(tmp_path, "log", "log")
    second, seen = emit(tmp_path, "log")
    events = [e for e, _ in read_events(tmp_path / "events.jsonl")]
    assert [e.seq for e in events] == [1, 2, 3]
    assert [e.attempt for e in events] == [1, 1, 2]
    assert first.run == second.run == events[2].run
    assert seen == [events[2]]


def test_a_torn_line_is_cut_off_whatever_its_length(tmp_path):
    emit(tmp_path, "log", "log", "log")
    whole = (tmp_path / "events.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(lines[0]) + len(lines[1]), len(whole)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "events.jsonl").write_bytes(whole[:cut])
        emit(folder, "done")
        events = [e for e, _ in read_events(folder / "events.jsonl")]
        assert [(e.seq, e.kind) for e in events] == [(1, "log"), (2, "log"), (3, "done")]


@pytest.mark.parametrize("damage", [b"xx", b"\xff\xff", b'{"v":"\xff"', b"[" * 100_000])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_line_keeps_its_seq_and_the_run_goes_on(tmp_path, which, damage):
    emit(tmp_path, "log", "log", "log")
    path = tmp_path / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[which] = damage + lines[which][2:]
    path.write_bytes(b"".join(lines))
    log, seen = emit(tmp_path, "done")
    assert log.damaged == 1 and seen[0].seq == 4
    assert path.read_bytes().startswith(b"".join(lines))


def test_a_resume_and_the_log_read_the_same_history(tmp_path):
    """A line that is whole JSON and lacks its newline was not written: the log cuts it off."""
    log = EventLog(tmp_path, listener=lambda event: None)
    for step in (1, 2, 3):
        log.emit("checkpoint", step=step, path=f"step_{step}")
    log.close()
    first, second, third = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(first + second.replace(b"step_2", b"\xff") + third.rstrip())
    assert read_history(log.path).checkpoints == {1: "step_1"}
    again = EventLog(tmp_path, listener=lambda event: None)
    again.close()
    assert again.history.checkpoints == {1: "step_1"} and again.damaged == 1


def test_lines_are_what_the_contract_says(tmp_path):
    emit(tmp_path, "log")
    raw = msgspec.json.decode((tmp_path / "events.jsonl").read_bytes())
    assert set(raw) == {"v", "seq", "time", "run", "attempt", "kind", "data"} and raw["time"] == 5.0


@pytest.fixture
def room():
    """Limits the size of files, as a stand-in for the room on a disk: a write beyond it is cut short, the next one
    fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_no_event_and_leaves_no_half_line(tmp_path, room):
    log = EventLog(tmp_path, listener=lambda event: None)
    room(2000)
    for n in range(30):
        log.emit("log", level="info", text=f"{n:050d}")
    assert log.waiting and not log.flush()
    written = [e.data["text"] for e, _ in read_events(tmp_path / "events.jsonl")]
    assert 0 < len(written) == 30 - log.waiting and (tmp_path / "events.jsonl").read_bytes().endswith(b"\n")
    room(resource.RLIM_INFINITY)
    assert log.flush() and not log.waiting
    log.close()
    events = [e for e, _ in read_events(tmp_path / "events.jsonl")]
    assert [e.data["text"] for e in events] == [f"{n:050d}" for n in range(30)] and [e.seq for e in events] == list(
        range(1, 31)
    )


@pytest.fixture
def armed():
    yield fault_injection.arm
    fault_injection.arm([])


@pytest.mark.parametrize("point", ["event.before-write", "event.mid-write"])
def test_the_reserve_gives_way_to_events(tmp_path, armed, point):
    log = EventLog(tmp_path, listener=lambda event: None)
    assert (tmp_path / ".reserve").stat().st_size == 64 * 2**10
    armed([f"enospc:{point}:3"])
    for n in range(5):
        log.emit("step", step=n)
    assert not log.waiting and not (tmp_path / ".reserve").exists()
    assert [e.data["step"] for e, _ in read_events(tmp_path / "events.jsonl")] == list(range(5))
    log.close()


def test_what_watches_may_answer_with_events(tmp_path):
    log = EventLog(tmp_path, listener=lambda event: None)
    log.watch = lambda event: log.emit("log", level="info", text=f"seen {event.seq}") if event.kind == "step" else None
    log.emit("step", step=1)
    assert [(e.kind, e.seq) for e, _ in read_events(log.path)] == [("step", 1), ("log", 2)]
    log.close()
