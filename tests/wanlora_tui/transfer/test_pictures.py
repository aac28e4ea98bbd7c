"""Pictures of another machine: they come when looked at, the newest first, and the cache stays small."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.waiting import until
from wanlora_tui.transfer import pictures
from wanlora_tui.transfer.here import HereFiles
from wanlora_tui.transfer.messages import Cut
from wanlora_tui.transfer.pictures import FarPictures


class Line(HereFiles):
    """A channel to this very machine."""

    cut = False

    def read(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        if Line.cut:
            raise Cut("reset by peer")
        return super().read(path, offset, length)

    def end(self) -> None:
        pass


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarPictures]:
    Line.cut = False
    changed = threading.Event()
    pictures = FarPictures("box", Line, changed.set, tmp_path / "cache", cap=2500)  # type: ignore[arg-type]
    yield pictures
    pictures.close()


def test_a_picture_comes_once_and_again_when_it_is_another(far: FarPictures, tmp_path: Path):
    there = tmp_path / "00.png"
    there.write_bytes(b"a" * 1000)
    assert far.find(there, 10) == "It is being fetched from box."
    first = until(lambda: isinstance(found := far.find(there, 10), Path) and found, "the picture")
    assert first != there and first.suffix == ".png" and first.read_bytes() == there.read_bytes()
    there.write_bytes(b"b" * 1000)
    assert far.find(there, 10) == first
    assert far.find(there, 20) == first, "the one before, while the next is on its way"
    second = until(lambda: (found := far.find(there, 20)) != first and found, "the next one")
    assert isinstance(second, Path) and second.read_bytes() == b"b" * 1000


def test_the_cache_keeps_what_was_used_last(far: FarPictures, tmp_path: Path):
    kept = []
    for i in range(4):
        there = tmp_path / f"{i}.png"
        there.write_bytes(bytes([i]) * 1000)
        kept.append(until(lambda there=there: isinstance(f := far.find(there), Path) and f, "a picture"))
    assert [path.exists() for path in kept] == [False, False, True, True]


def test_what_cannot_be_had_says_why(far: FarPictures, tmp_path: Path):
    until(lambda: far.find(tmp_path / "none.png") == "It is not there on box.", "that there is none")
    there = tmp_path / "00.png"
    there.write_bytes(b"a")
    Line.cut = True
    until(lambda: "reset by peer" in str(far.find(there)), "the reason")
    Line.cut = False
    until(lambda: isinstance(far.find(there), Path), "the picture, once the line is back")


class SlowLine(Line):
    """Gives a kilobyte at a time, all but the first only when it may; says what was asked for."""

    may = threading.Event()
    asked: list[tuple[str, int]] = []  # noqa: RUF012

    def read(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        SlowLine.asked.append((Path(path).name, offset))
        for at in range(offset, offset + length, 1000):
            if at > offset:
                until(SlowLine.may.is_set, "the line")
            if at > offset and Line.cut:
                raise Cut("reset by peer")
            yield Path(path).read_bytes()[at : min(at + 1000, offset + length)]


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FarPictures]:
    monkeypatch.setattr(pictures, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(pictures, "AGAIN_SECONDS", 0.0)
    Line.cut, SlowLine.may, SlowLine.asked = False, threading.Event(), []
    far = FarPictures("box", SlowLine, lambda: None, tmp_path / "cache")  # type: ignore[arg-type]
    yield far
    SlowLine.may.set()
    far.close()


def test_a_film_says_how_much_of_it_has_come(slow: FarPictures, tmp_path: Path):
    there = tmp_path / "00.mp4"
    there.write_bytes(bytes(range(256)) * 12)  # 3 KiB
    until(lambda: slow.find(there) == "It is being fetched from box: 1000 B of 3 KiB.", "the first part")
    SlowLine.may.set()
    film = until(lambda: isinstance(found := slow.find(there), Path) and found, "the film")
    assert film.suffix == ".mp4" and film.read_bytes() == there.read_bytes()
    assert not list(film.parent.glob(".*.part"))


def test_after_a_cut_a_film_goes_on_where_it_was(slow: FarPictures, tmp_path: Path):
    there = tmp_path / "00.mp4"
    there.write_bytes(bytes(range(256)) * 12)
    Line.cut = True
    SlowLine.may.set()
    until(lambda: "reset by peer. It is tried again." in str(slow.find(there)), "the cut")
    Line.cut = False
    film = until(lambda: isinstance(found := slow.find(there), Path) and found, "the film")
    assert film.read_bytes() == there.read_bytes()
    assert SlowLine.asked[0] == ("00.mp4", 0) and all(at > 0 for _, at in SlowLine.asked[1:])


def test_a_picture_does_not_wait_for_a_film(slow: FarPictures, tmp_path: Path):
    film, picture = tmp_path / "00.mp4", tmp_path / "00.png"
    film.write_bytes(b"f" * 5000)
    picture.write_bytes(b"p" * 500)
    until(lambda: "1000 B" in str(slow.find(film)), "the film's first part")
    slow.find(picture)
    SlowLine.may.set()
    until(lambda: isinstance(slow.find(film), Path), "the film")
    assert SlowLine.asked == [("00.mp4", 0), ("00.png", 0), ("00.mp4", 2000)]


def test_nobody_looks_any_more(slow: FarPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    film, other = tmp_path / "00.mp4", tmp_path / "01.mp4"
    film.write_bytes(b"f" * 5000)
    other.write_bytes(b"o" * 5000)
    until(lambda: "1000 B" in str(slow.find(film)), "the film's first part")
    monkeypatch.setattr(pictures, "LEFT_SECONDS", -1.0)
    SlowLine.may.set()
    until(lambda: not slow._wanted, "that it is given up")
    assert not isinstance(slow._known.get((film, None)), Path)
    monkeypatch.setattr(pictures, "LEFT_SECONDS", 60.0)
    assert isinstance(until(lambda: isinstance(f := slow.find(other), Path) and f, "another"), Path)
