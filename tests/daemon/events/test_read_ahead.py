"""What a second process has read ahead adds up to the same, whatever stands in the file and becomes of either."""

import os
import random
import resource
import signal
from itertools import count
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from daemon.events import event_tail, read_ahead
from daemon.events.event_tail import Tail
from daemon.events.read_ahead import ReadAhead
from daemon.events.stored_fold import write_fold
from daemon.wire.protocol import encode
from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_event
from tests.daemon.events.test_stored_fold import fold_all, loaded
from tests.presets.runs.test_run_view import random_run

pytestmark = pytest.mark.process

STEPS = 1000  # in a row, so that whole blocks hold nothing rare


def steps(rng: random.Random, attempt: int) -> list[Event]:
    found = []
    for step in range(STEPS):
        data = {
            "step": step,
            "expert": f"e{step // 7 % 2}",
            "loss": rng.random(),
            "lr": 1e-4,
            "grad_norm": rng.random(),
        }
        data |= {"timestep": 1.0, "vram_gib": 1.0, "ram_gib": 2.0, "seconds": {"data": 0.5, "total": rng.random()}}
        if attempt % 2 == 0:  # by several processes
            told = [{"rank": rank, "seconds": rng.random(), "vram_gib": 9.0} for rank in rng.sample(range(4), 2)]
            data |= {"ranks": told, "at_once": rng.randrange(3)}
        found.append(Event(seq=0, time=rng.random() + step, run="r", attempt=attempt, kind="step", data=data))
        if step % 90 == 0:
            data = {"step": step, "path": f"checkpoints/{step}"}
            found.append(Event(seq=0, time=step, run="r", attempt=attempt, kind="checkpoint", data=data))
    return found


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """Rare kinds, lines that cannot be read and new attempts between many steps."""
    rng, seqs, lines = random.Random(3), count(1), []
    for attempt in range(1, 13):
        for event in [*random_run(rng, 20), *steps(rng, attempt)]:
            lines.append(msgspec.json.encode(msgspec.structs.replace(event, seq=next(seqs))) + b"\n")
    for at in rng.sample(range(len(lines)), 5):
        lines[at] = rng.choice([b"junk\n", b"\x80\xff\n", lines[at][: len(lines[at]) // 2]])
    return lines


@pytest.fixture
def run(tmp_path: Path, lines: list[bytes], monkeypatch) -> Path:
    monkeypatch.setattr(read_ahead, "LONG", 2**20)
    monkeypatch.setattr(read_ahead, "LEAD", 0)
    monkeypatch.setattr(read_ahead, "PATIENCE", 60.0)
    monkeypatch.setattr(read_ahead, "cores", lambda: 2)
    monkeypatch.setattr(read_ahead, "_at_work", lambda: 2)
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines))
    return tmp_path


class Waited(ReadAhead):
    """Begun when it has said where it begins; what is given out is counted."""

    given = 0
    others: ClassVar["list[Waited]"] = []

    def __init__(self, *where: object) -> None:
        super().__init__(*where)  # type: ignore[arg-type]
        self.others.append(self)
        while self.next is None:
            assert self.piece_at(-2) is None and not self._pipe.closed

    def piece_at(self, offset: int):  # type: ignore[no-untyped-def]
        piece = super().piece_at(offset)
        Waited.given += piece is not None and piece.after >= 0
        return piece


@pytest.fixture
def waited(run: Path, monkeypatch) -> type[Waited]:
    monkeypatch.setattr(event_tail, "ReadAhead", Waited)
    monkeypatch.setattr(Waited, "given", 0)
    monkeypatch.setattr(Waited, "others", [])
    return Waited


def alone(run: Path, monkeypatch) -> Tail:
    with monkeypatch.context() as patch:
        patch.setattr(event_tail, "is_worth_it", lambda size: False)
        return fold_all(Tail(run))


def require_same(tail: Tail, other: Tail) -> None:
    assert encode(tail.view) == encode(other.view)
    assert (tail.offset, tail.last_word, tail.started) == (other.offset, other.last_word, other.started)
    for since in 0, tail.last_seq // 2, tail.last_seq - 1:
        assert tail.page(since) == other.page(since)


def test_it_adds_up_to_the_same(run: Path, waited: type[Waited], monkeypatch):
    tail = fold_all(Tail(run))
    require_same(tail, alone(run, monkeypatch))
    assert waited.given >= 10
    assert [one._process.returncode is None for one in waited.others] == [False]


def test_behind_a_stored_fold_and_before_what_is_added_meanwhile(
    run: Path, waited: type[Waited], lines: list[bytes], monkeypatch
):
    path = run / "events.jsonl"
    path.write_bytes(b"".join(lines[:1500]))
    encoded = fold_all(Tail(run)).to_store(ended=True)
    assert encoded is not None
    write_fold(run, encoded)
    path.write_bytes(b"".join(lines[:-700]) + lines[-700][:9])
    tail = loaded(run)
    assert tail.offset > 0 and tail.fold(0.0)
    with path.open("ab") as f:
        f.write(b"".join(lines[-700:])[9:])
    require_same(fold_all(tail), alone(run, monkeypatch))
    assert waited.given >= 5
    one_by_one, each = RunView(), Tail(run)
    while events := each.poll():
        for event in events:
            apply_event(one_by_one, event)
    assert encode(tail.view) == encode(one_by_one) and len(one_by_one.ranks) == 4


def test_it_is_heard_also_where_a_thousand_files_are_open(run: Path, waited: type[Waited], monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    with Path(os.devnull).open("rb") as null:
        held = [os.dup(null.fileno()) for _ in range(1100)]
        try:
            tail = fold_all(Tail(run))
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    require_same(tail, alone(run, monkeypatch))
    assert waited.given >= 10


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_dies_or_stands_still_is_done_without(run: Path, waited: type[Waited], monkeypatch, number: int):
    monkeypatch.setattr(read_ahead, "PIPE_BYTES", 2**12)  # it must not have sent all before
    tail = Tail(run)
    while not waited.given:
        assert tail.fold(0.0)
    monkeypatch.setattr(waited.others[0], "_patience", 0.2)
    os.kill(waited.others[0]._process.pid, number)
    require_same(fold_all(tail), alone(run, monkeypatch))
    assert waited.others[0]._process.returncode == -signal.SIGKILL


def test_a_file_in_its_place_is_read_by_another_one(run: Path, waited: type[Waited], lines: list[bytes], monkeypatch):
    tail = Tail(run)
    while not waited.given:
        assert tail.fold(0.0)
    (run / "new").write_bytes(b"".join(line for line in lines if b'"checkpoint"' not in line))
    (run / "new").rename(run / "events.jsonl")
    require_same(fold_all(tail), alone(run, monkeypatch))
    assert len(waited.others) == 2


def test_a_file_in_its_place_that_goes_on_otherwise_is_read_by_another_one(
    run: Path, waited: type[Waited], lines: list[bytes], monkeypatch
):
    tail = Tail(run)
    while not waited.given:
        assert tail.fold(0.0)
    others = [line.replace(b'"expert":"e0"', b'"expert":"f0"') for line in lines]
    data = b"".join(lines)[: tail.offset]
    (run / "new").write_bytes(data + b"".join(others)[tail.offset :])
    (run / "new").rename(run / "events.jsonl")
    require_same(fold_all(tail), alone(run, monkeypatch))
    assert len(waited.others) == 2


@pytest.mark.parametrize("version", ["0", 1])
def test_that_of_another_version_is_done_without(run: Path, waited: type[Waited], monkeypatch, version: object):
    tail = Tail(run)
    while not waited.given:
        assert tail.fold(0.0)
    given = waited.given
    monkeypatch.setattr(read_ahead, "VERSION", "another")
    if version == 1:
        monkeypatch.setattr(read_ahead, "_decoder", msgspec.msgpack.Decoder(int))
    require_same(fold_all(tail), alone(run, monkeypatch))
    assert waited.given == given


def test_without_a_free_core_or_a_process_it_is_read_alone(run: Path, monkeypatch):
    monkeypatch.setattr(event_tail, "ReadAhead", None)
    with monkeypatch.context() as patch:
        patch.setattr(read_ahead, "cores", lambda: 1)
        tail = fold_all(Tail(run))
    with monkeypatch.context() as patch:
        patch.setattr(read_ahead, "_at_work", lambda: 3)
        require_same(fold_all(Tail(run)), tail)

    def refused(*where: object) -> None:
        raise OSError

    monkeypatch.setattr(event_tail, "ReadAhead", refused)
    monkeypatch.setattr(event_tail, "is_worth_it", lambda size: True)
    require_same(fold_all(Tail(run)), tail)
