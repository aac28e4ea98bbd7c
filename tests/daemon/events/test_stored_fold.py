"""The fold beside the events: with it or without, whole, damaged or another's, the view is that of the file."""

import os
import random
from pathlib import Path

import msgspec
import pytest

from daemon.events import event_tail, stored_fold
from daemon.events.event_tail import Tail
from daemon.events.stored_fold import FOLD_FILE, read_fold, write_fold
from daemon.wire.protocol import encode
from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_event
from tests.daemon.events.test_event_tail import DAMAGE, everything, log_event, seqs
from tests.presets.runs.test_run_view import random_run


def fold_all(tail: Tail) -> Tail:
    while tail.fold():
        pass
    return tail


def loaded(run_dir: Path) -> Tail:
    tail = Tail(run_dir)
    tail.load()
    return tail


def stored(run_dir: Path) -> Tail:
    tail = fold_all(Tail(run_dir))
    encoded = tail.to_store(ended=True)
    assert encoded is not None
    write_fold(run_dir, encoded)
    return tail


@pytest.fixture(autouse=True)
def few_are_worth_it(monkeypatch):
    monkeypatch.setattr(event_tail, "STORE_AT_END", 1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [msgspec.json.encode(e) + b"\n" for e in random_run(random.Random(1), 2000)]
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines))
    return tmp_path


@pytest.mark.parametrize("block", [event_tail.BLOCK_BYTES, 1500])  # few blocks of so many kinds can be folded at once
def test_at_every_cut_the_stored_fold_and_the_rest_are_the_whole(tmp_path: Path, monkeypatch, block: int):
    monkeypatch.setattr(event_tail, "BLOCK_BYTES", block)
    rng = random.Random(2)
    lines = [msgspec.json.encode(e) + b"\n" for e in random_run(rng, 700)]
    for at in rng.sample(range(len(lines)), 30):
        lines[at] = rng.choice([b"", b"junk\n", b"\x80\xff\n", lines[at][: len(lines[at]) // 2], lines[at] * 2])
    data, path = b"".join(lines), tmp_path / "events.jsonl"
    path.write_bytes(data)
    slow = Tail(tmp_path)
    events = []
    while found := slow.poll(13):
        events += found
    view = RunView()
    for event in events:
        apply_event(view, event)
    assert encode(slow.view) == encode(view) == encode(fold_all(Tail(tmp_path)).view)
    for cut in rng.sample(range(len(data)), 40):
        path.write_bytes(data[:cut])
        if (encoded := fold_all(Tail(tmp_path)).to_store(ended=True)) is not None:
            write_fold(tmp_path, encoded)
        with path.open("ab") as f:
            f.write(data[cut:])
        tail = fold_all(loaded(tmp_path))
        assert encode(tail.view) == encode(view)
        assert tail.last_word == slow.last_word and tail.started == slow.started
        assert everything(tail) == events
        (tmp_path / FOLD_FILE).unlink(missing_ok=True)


def test_a_stored_fold_is_begun_with_and_is_private(run: Path):
    whole = stored(run)
    assert (run / FOLD_FILE).stat().st_mode & 0o777 == 0o600
    tail = loaded(run)
    assert tail.last_seq == 2000 and encode(tail.view) == encode(whole.view) and not tail.fold()
    with (run / "events.jsonl").open("ab") as f:
        f.write(log_event(2001))
    assert seqs(tail.poll()) == [2001]
    assert loaded(run).last_seq == 2000, "more events are no other file"


def test_pages_are_those_of_the_file(run: Path):
    stored(run)
    tail, slow = loaded(run), Tail(run)
    while slow.poll():
        pass
    for since in (0, 1, 255, 256, 257, 1000, 1999, 2000):
        assert tail.page(since) == slow.page(since)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_damaged_one_is_passed_over(run: Path):
    whole, path = stored(run), run / FOLD_FILE
    data, rng = path.read_bytes(), random.Random(3)
    damaged = [data[:n] for n in (0, 5, 13, 29, 40, len(data) // 2, len(data) - 1)]
    damaged += [data + b"x", b"\0" * len(data), b"\xff" * 100]
    damaged += [flipped(data, rng.randrange(len(data))) for _ in range(100)]
    for n, bad in enumerate(damaged):
        path.write_bytes(bad)
        assert read_fold(run) is None
        if n % 12 == 0:  # what is passed over is passed over: to fold all again takes long
            assert encode(fold_all(loaded(run)).view) == encode(whole.view)
    path.write_bytes(data)
    assert read_fold(run) is not None


def replaced(path: Path, content: bytes) -> None:
    aside = path.with_name("aside")
    aside.write_bytes(content)
    aside.replace(path)


def test_that_of_other_events_is_passed_over(run: Path):
    stored(run)
    path = run / "events.jsonl"
    data, facts = path.read_bytes(), path.stat()
    for other in (
        b"",
        data[: len(data) // 2],
        data[:-1],
        b"".join(log_event(n) for n in range(1, 4000)),
        flipped(data, 10),
        flipped(data, len(data) - 10),
        flipped(data, len(data) - 10) + log_event(2001),
    ):
        path.write_bytes(other)
        assert read_fold(run) is None
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert read_fold(run) is not None
    os.utime(path)
    assert read_fold(run) is None, "of the same length and written since: it may be another in its middle"
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    replaced(path, data)
    assert read_fold(run) is None, "another file"
    path.unlink()
    assert read_fold(run) is None


def test_that_of_another_version_is_passed_over(run: Path, monkeypatch):
    stored(run)
    for name in ("VERSION", "FOLD_VERSION"):
        with monkeypatch.context() as m:
            m.setattr(stored_fold, name, "0.0.1" if name == "VERSION" else 0)
            assert read_fold(run) is None
    assert read_fold(run) is not None


def test_that_of_another_user_and_one_that_others_may_write_are_passed_over(run: Path):
    stored(run)
    path = run / FOLD_FILE
    path.chmod(0o666)
    assert read_fold(run) is None
    path.chmod(0o600)
    assert read_fold(run) is not None
    path.rename(run / "elsewhere")
    path.symlink_to(run / "elsewhere")
    assert read_fold(run) is None
    path.unlink()
    os.mkfifo(path)
    assert read_fold(run) is None
    if os.geteuid() == 0:
        path.unlink()
        (run / "elsewhere").rename(path)
        os.chown(path, 12345, -1)
        assert read_fold(run) is None


def test_one_that_is_too_large_is_neither_written_nor_read(run: Path, monkeypatch):
    stored(run)
    monkeypatch.setattr(stored_fold, "MAX_FOLD_BYTES", 100)
    assert read_fold(run) is None
    (run / FOLD_FILE).unlink()
    stored(run)
    assert not (run / FOLD_FILE).exists()


def test_events_begun_anew_while_it_is_being_stored_are_not_mistaken(run: Path):
    tail = fold_all(Tail(run))
    encoded = tail.to_store(ended=True)
    (run / "events.jsonl").write_bytes(b"".join(log_event(n) for n in range(1, 9000)))
    write_fold(run, encoded)
    assert not (run / FOLD_FILE).exists()


def test_a_folder_that_takes_no_file_keeps_none(run: Path):
    encoded = fold_all(Tail(run)).to_store(ended=True)
    (run / FOLD_FILE).mkdir()
    write_fold(run, encoded)
    assert sorted(p.name for p in run.iterdir()) == ["events.fold", "events.jsonl"]
    assert loaded(run).last_seq == 0


@pytest.mark.parametrize("damaged", DAMAGE.values(), ids=DAMAGE)
def test_damage_folds_as_it_is_published(tmp_path: Path, damaged: bytes):
    (tmp_path / "events.jsonl").write_bytes(log_event(1) + log_event(2) + damaged + log_event(4) + log_event(5))
    slow = Tail(tmp_path)
    slow.poll()
    assert encode(fold_all(Tail(tmp_path)).view) == encode(slow.view)


def test_the_end_alone_tells_the_last_word_and_the_last_step(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(event_tail, "END_BYTES", 2000)
    events = random_run(random.Random(5), 500)
    step = max(e.data["step"] for e in events if e.kind == "step")
    for kind, data in (
        ("step", {**next(e.data for e in events if e.kind == "step"), "step": step + 1}),
        ("stopped", {"step": step + 1, "path": "", "why": "w"}),
    ):
        events.append(Event(seq=len(events) + 1, time=1.0, run="r", attempt=9, kind=kind, data=data))
    for skipped in (0, 490):
        (tmp_path / "events.jsonl").write_bytes(b"".join(msgspec.json.encode(e) + b"\n" for e in events[skipped:]))
        tail = Tail(tmp_path)
        tail.fold_end()
        assert tail.last_word == events[-1] and tail.view.step == step + 1
    nothing = Tail(tmp_path / "nowhere")
    nothing.fold_end()
    assert nothing.last_word is None
