"""Real films decoded at the drawn size: every frame, in a bounded memory, with words for what cannot be shown."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.interface.films import scene
from tests.helpers.videos import number_of, numbered, write_clip
from tests.helpers.waiting import PATIENCE
from wanlora_tui.film.decoding import Reel, fitted, read_reel


def read(path: Path, box: tuple[int, int] = (64, 48), **more: int) -> Reel:
    reel = Reel(path, box)
    read_reel(reel, **more)  # type: ignore[arg-type]
    assert reel.whole
    return reel


def old(path: Path) -> Path:
    os.utime(path, (1e9, 1e9))
    return path


def test_every_frame_at_its_time(tmp_path: Path):
    reel = read(write_clip(tmp_path / "a.mp4", frames=20, fps=16.0))
    assert [number_of(f) for f in reel.frames] == list(range(20)) and not reel.problem
    assert reel.duration == pytest.approx(20 / 16) and reel.times[3] == pytest.approx(3 / 16)
    assert number_of(reel.at(3 / 16)) == 3 and number_of(reel.at(99.0)) == 19


def test_the_size_that_is_drawn(tmp_path: Path):
    path = write_clip(tmp_path / "a.mp4", frames=2)  # 64 x 48
    assert {f.shape for f in read(path, (40, 20)).frames} == {(20, 27, 3)}
    assert fitted(64, 48, (64, 999)) == (64, 48)
    assert fitted(64, 48, (64, 999), 0.5) == (64, 24)
    assert fitted(1000, 10, (8, 8)) == (8, 2)
    turned = write_clip(tmp_path / "turned.mp4", frames=2, rotation=90)
    assert {f.shape for f in read(turned, (48, 64)).frames} == {(64, 48, 3)}


def test_a_long_film_keeps_every_second_frame(tmp_path: Path):
    path = write_clip(tmp_path / "a.mp4", frames=20)
    reel = read(path, most=10 * 64 * 48 * 3)
    assert [number_of(f) for f in reel.frames] == list(range(0, 20, 2))
    assert number_of(reel.at(reel.times[7])) == 6


def test_an_animated_webp(tmp_path: Path):
    pictures = [Image.fromarray(numbered(i, 64, 48)) for i in range(4)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    reel = read(tmp_path / "a.webp")
    assert [number_of(f) for f in reel.frames] == [0, 1, 2, 3]
    assert reel.times == pytest.approx([0, 0.1, 0.2, 0.3]) and reel.duration == pytest.approx(0.4)


def test_a_film_that_is_cut_off_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wanlora_tui.film.decoding.YOUNG_SECONDS", 10 * PATIENCE)
    whole = write_clip(tmp_path / "a.mp4", frames=20, muxing={"movflags": "faststart"})
    for name, data, words in (
        ("short.mp4", whole.read_bytes()[:-500], "it is cut off: the file ends 500 bytes too early"),
        ("head.mp4", whole.read_bytes()[:20], "it is cut off: "),
        ("empty.mp4", b"", "it is cut off: it has no index"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert read(path).problem.startswith("it is still being written"), name
        assert words in read(old(path)).problem and not read(path).frames


def test_what_else_cannot_be_shown(tmp_path: Path):
    assert read(tmp_path / "none.mp4").problem == "it is not there"
    (tmp_path / "dir.mp4").mkdir()
    assert "it cannot be read (is a directory)" in read(tmp_path / "dir.mp4").problem
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert "it cannot be read" in read(tmp_path / "a.png").problem
    damaged = bytearray(write_clip(tmp_path / "b.mp4", frames=40, muxing={"movflags": "faststart"}).read_bytes())
    damaged[len(damaged) // 3 :] = os.urandom(len(damaged) - len(damaged) // 3)
    (tmp_path / "b.mp4").write_bytes(damaged)
    reel = read(old(tmp_path / "b.mp4"))
    assert reel.problem or len(reel.frames) <= 40  # whatever it is, nothing is raised


def test_nobody_wants_it_any_more(tmp_path: Path):
    reel = Reel(write_clip(tmp_path / "a.mp4", frames=20), (64, 48))

    def told() -> None:
        reel.unwanted = len(reel.frames) == 3

    read_reel(reel, told)
    assert len(reel.frames) == 3 and not reel.whole


def test_a_poster_is_a_film_of_one_frame(tmp_path: Path):
    Image.fromarray(scene(0, 100, 6)).save(tmp_path / "a.png")
    reel = read(tmp_path / "a.png")
    assert len(reel.frames) == 1 and np.array_equal(reel.frames[0], scene(0, 100, 6))
