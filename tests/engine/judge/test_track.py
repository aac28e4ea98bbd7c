"""Drawn objects that are followed: on the clips' way, off it, and changed."""

import numpy as np
import pytest

from engine.judge.track import follow, track
from tests.helpers.drawn_films import toy

CIRCLES = [follow(film, "a red ball circles, still camera") for film in toy("circles", count=4)]


def test_one_that_goes_as_the_clips_do():
    [film] = toy("circles", shape="star", colour="blue", seed=5)
    found = track(follow(film, "a blue star circles, still camera"), CIRCLES)
    assert found.path < 0.01 and found.seen == 1 and found.size == pytest.approx(1, abs=0.1) and found.shape > 0.8


@pytest.mark.parametrize(("motion", "least"), [("stays", 0.1), ("moves left", 0.1), ("moves right", 0.1)])
def test_one_that_goes_another_way(motion: str, least: float):
    [film] = toy(motion, seed=6)
    assert track(follow(film, f"a red ball {motion}, still camera"), CIRCLES).path > least


def test_one_that_fades_is_lost_and_one_that_changes_its_shape_does_not_keep_it():
    [film] = toy("stays", seed=7)
    faded = film.copy()
    faded[8:] = 110
    path = follow(faded, "a red ball stays")
    assert path.seen_T.tolist() == [True] * 8 + [False] * 9
    found = track(path, [follow(film, "a red ball stays")])
    assert found.seen == pytest.approx(8 / 17) and found.size < 0.1 and found.path == pytest.approx(9 / 16 * 0.5, 0.05)
    [ring] = toy("stays", seed=7, shape="ring")
    turned = np.concatenate([film[:8], ring[8:]])
    assert follow(turned, "a red ball stays").shape < 0.8 < follow(film, "a red ball stays").shape


def test_the_clips_that_do_the_same_are_what_it_is_measured_by():
    left, right = (follow(toy(f"moves {way}", seed=8)[0], f"a red ball moves {way}") for way in ("left", "right"))
    wanted = follow(toy("moves left", seed=9, colour="green")[0], "a green ball moves left")
    assert track(wanted, [left, right]).path < 0.05
    assert track(wanted, [right]).path > 0.2 and track(wanted, []) is None


def test_what_is_not_drawn_is_not_followed():
    [film] = toy("stays", seed=7)
    assert follow(film, "a castle") is None, "the caption names no object"
    assert follow(film, "a green ball stays") is None, "no such colour is in the picture"
    assert follow(film[:, :32], "a red ball stays") is None, "its places would not be widths"
