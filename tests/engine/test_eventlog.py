import msgspec
import pytest

from engine.eventlog import EventLog
from presets.events import read_events


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


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_line_keeps_its_seq_and_the_run_goes_on(tmp_path, which):
    emit(tmp_path, "log", "log", "log")
    path = tmp_path / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[which] = b"xx" + lines[which][2:]
    path.write_bytes(b"".join(lines))
    log, seen = emit(tmp_path, "done")
    assert log.damaged == 1 and seen[0].seq == 4
    assert path.read_bytes().startswith(b"".join(lines))


def test_lines_are_what_the_contract_says(tmp_path):
    emit(tmp_path, "log")
    raw = msgspec.json.decode((tmp_path / "events.jsonl").read_bytes())
    assert set(raw) == {"v", "seq", "time", "run", "attempt", "kind", "data"} and raw["time"] == 5.0
