"""A look at many files ends when nobody wants its answer, and what it has learnt by then is true."""

import os
import threading
from pathlib import Path

import pytest

from presets.clips import clip_facts as known
from presets.clips.clip_facts import probe_clip, scan_dataset
from presets.clips.probe import probe_video
from presets.clips.scene_cuts import find_cuts
from presets.errors import ClipError
from presets.facts import gather as gathering
from presets.facts.gather import gather
from presets.job.schema import DatasetPanel, Job, JobPanel
from presets.look import Look, LookEnded
from tests.helpers.facts import gpu, machine
from tests.helpers.videos import write_clip
from tests.helpers.waiting import PATIENCE

MANY = 100
THREADS = 8  # of a scan, at most


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one clip under many names."""
    folder = tmp_path_factory.mktemp("many")
    first = write_clip(folder / "clip_0000.mp4", frames=24)
    for i in range(1, MANY):
        os.link(first, folder / f"clip_{i:04}.mp4")
    return folder


def test_answers_come_in_order_and_are_counted() -> None:
    look = Look()
    assert look.at_all(range(50), lambda n: n * n, threads=4) == [n * n for n in range(50)]
    assert (look.done, look.total) == (50, 50)
    refused = ValueError("an answer like any other")
    assert Look().at_all([1], lambda n: refused, threads=1) == [refused]
    assert look.at_all([], lambda n: n, threads=4) == [] and (look.done, look.total) == (0, 0)


def test_what_a_file_raises_is_raised_and_ends_the_look() -> None:
    look, seen = Look(), []

    def read(number: int) -> None:
        seen.append(number)
        if number == 5:
            raise ZeroDivisionError
        while number > 5:  # a long file
            look.raise_if_ended()

    with pytest.raises(ZeroDivisionError):
        look.at_all(range(1000), read, threads=2)
    assert look.ended and len(seen) <= 8


def test_an_error_that_is_an_answer_is_given_and_not_raised() -> None:
    answers = Look().at_all(range(5), lambda n: ValueError(n) if n % 2 else n, threads=2)
    assert [type(answer) for answer in answers] == [int, ValueError, int, ValueError, int]


def test_a_thread_that_is_stuck_is_left_behind() -> None:
    """As on a network disk that does not answer; the thread must not keep the program alive either."""
    look, stuck, never = Look(), threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def read(number: int) -> None:
        threads.append(threading.current_thread())
        stuck.set()
        never.wait()

    outcome: list[BaseException] = []

    def run() -> None:
        try:
            look.at_all([1], read, threads=1)
        except LookEnded as e:
            outcome.append(e)

    caller = threading.Thread(target=run)
    caller.start()
    stuck.wait(PATIENCE)
    look.end()
    caller.join(PATIENCE)
    try:
        assert outcome and not caller.is_alive() and threads[0].is_alive() and threads[0].daemon
    finally:
        never.set()


class EndsAfter(Look):
    """Ended by itself when it was asked so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def raise_if_ended(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.end()
        super().raise_if_ended()


def test_an_ended_scan_looks_at_no_further_clip_and_keeps_what_it_knows(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_known", {})
    looked_at: list[str] = []
    look = Look()

    def probe(path: Path, one: Look | None = None):  # type: ignore[no-untyped-def]
        looked_at.append(path.name)
        if len(looked_at) == 20:
            look.end()
        return probe_clip(path, one)

    monkeypatch.setattr(known, "probe_clip", probe)
    with pytest.raises(LookEnded):
        scan_dataset(DatasetPanel(path="."), 0, many, look)
    assert len(looked_at) <= 20 + THREADS
    assert 0 < look.done <= 20 + THREADS and look.total == MANY
    monkeypatch.setattr(known, "probe_clip", probe_clip)
    whole = scan_dataset(DatasetPanel(path="."), 0, many)
    assert len(whole.clips) == MANY and whole.problems == [] and {c.frames for c in whole.clips} == {24}


def test_listing_folders_ends_too(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.md").write_text("x")
    look = EndsAfter(2)
    with pytest.raises(LookEnded):
        scan_dataset(DatasetPanel(path="."), 0, tmp_path, look)
    assert (look.done, look.total) == (1, 0), "the folder itself and `a`"


@pytest.mark.parametrize("times", [0, 1, 10, 25, 40, 60])
def test_a_clip_is_left_in_the_middle_and_is_no_bad_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """One keyframe, so its last frame decodes through all the others."""
    monkeypatch.setattr(known, "_known", {})
    path = write_clip(tmp_path / "clip.mp4", frames=48, gop=1000)
    whole = Look()
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    probe_video(path, count)
    assert calls > 90, "each packet and each frame of the last group"
    with pytest.raises(LookEnded):
        probe_clip(path, EndsAfter(times))
    assert known._known == {} and probe_clip(path, whole).frames == 48


@pytest.mark.parametrize("times", [0, 1, 20, 60])
def test_a_search_for_cuts_is_left_in_the_middle(tmp_path: Path, times: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=48)
    with pytest.raises(LookEnded):
        find_cuts(path, EndsAfter(times).raise_if_ended)
    assert find_cuts(path, Look().raise_if_ended) == []


def test_an_ended_search_for_cuts_leaves_no_answer_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "_found", {})
    (tmp_path / "clips").mkdir()
    for name in ("a", "b", "c"):
        write_clip(tmp_path / "clips" / f"{name}.mp4", frames=24)
    job = Job(job=JobPanel(name="orbit"), datasets=[DatasetPanel(path="clips")])
    look, begun = Look(), []

    def cuts(path: Path, raise_if_ended):  # type: ignore[no-untyped-def]
        begun.append(path.name)
        look.end()
        return find_cuts(path, raise_if_ended)

    monkeypatch.setattr(gathering, "find_cuts", cuts)
    with pytest.raises(LookEnded):
        gather(job, tmp_path, out=tmp_path / "runs", machine=machine(gpu()), look=look)
    assert gathering._found == {} and len(begun) <= 3
    monkeypatch.setattr(gathering, "find_cuts", find_cuts)
    whole = gather(job, tmp_path, out=tmp_path / "runs", machine=machine(gpu()))
    assert [Path(p).name for p in whole.cuts] == ["a.mp4", "b.mp4", "c.mp4"] and whole.datasets[0].problems == []


def test_an_ended_look_is_no_error_of_the_clip() -> None:
    assert not issubclass(LookEnded, ClipError)
