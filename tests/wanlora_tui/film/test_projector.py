"""The thread that decodes: what is looked at, no more than fits, and given up when nobody looks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.videos import write_clip
from tests.helpers.waiting import until
from wanlora_tui.film.projector import Projector

ONE = 64 * 48 * 3  # bytes of a frame


@pytest.fixture
def projector() -> Iterator[Projector]:
    projector = Projector(lambda: None, cap=25 * ONE)
    yield projector
    projector.close()


def test_a_film_is_decoded_once_for_each_size(projector: Projector, tmp_path: Path):
    path = write_clip(tmp_path / "a.mp4", frames=6)
    reel = projector.reel(path, (64, 48))
    until(lambda: reel.whole, "the film")
    assert projector.reel(path, (64, 48)) is reel and len(reel.frames) == 6
    assert projector.reel(path, (32, 24)) is not reel
    write_clip(path, frames=3)
    anew = until(lambda: (r := projector.reel(path, (64, 48))).whole and r, "the film that was made anew")
    assert len(anew.frames) == 3


def test_no_more_than_fits_is_held(projector: Projector, tmp_path: Path):
    paths = [write_clip(tmp_path / f"{i}.mp4", frames=10) for i in range(4)]
    for path in paths:
        reel = projector.reel(path, (64, 48))
        until(lambda reel=reel: reel.whole, "a film")
    assert until(lambda: sum(r.nbytes for r in projector._reels.values()) <= 25 * ONE, "room")
    assert [path for path, *_ in projector._reels] == paths[2:]


def test_what_nobody_looks_at_is_given_up(projector: Projector, tmp_path: Path):
    paths = [write_clip(tmp_path / f"{i}.mp4", frames=60) for i in range(3)]
    reels = [projector.reel(path, (64, 48)) for path in paths]
    projector.only([reels[2]])
    until(lambda: reels[2].whole, "the one that is looked at")
    assert all(reel.whole or reel.unwanted for reel in reels)
    again = projector.reel(paths[1], (64, 48))
    until(lambda: again.whole, "one that is looked at after all")
    assert again.frames


def test_one_with_a_problem_is_looked_at_again(projector: Projector, tmp_path: Path):
    path = tmp_path / "a.mp4"
    reel = projector.reel(path, (64, 48))
    until(lambda: reel.whole, "the problem")
    assert reel.problem == "it is not there"
    write_clip(path, frames=3)
    until(lambda: projector.reel(path, (64, 48)).frames, "the film")
