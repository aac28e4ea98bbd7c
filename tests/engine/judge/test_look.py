"""Colours, sharpness and flicker of films in which they are known."""

import numpy as np
import pytest

from engine.judge.look import colour_distance, look_of
from engine.judge.motion import flow_of
from presets.report.measures import Look
from tests.helpers.drawn_films import blurred, camera, square, with_flicker

pytest.importorskip("cv2", reason="the extra `judge` is not installed")


def look(film: np.ndarray) -> Look:
    return look_of(film, flow_of(film))


def test_a_film_at_rest_keeps_everything():
    assert look(camera()) == Look(colours=0, sharpness=1, flicker=0)


@pytest.mark.parametrize("levels", [4, 12])
def test_flicker_is_what_brightness_does_without_motion(levels: int):
    found = look(with_flicker(camera(), levels))
    assert found.flicker == pytest.approx(levels / 255, rel=0.05)
    assert look(with_flicker(camera(right=2), levels)).flicker == pytest.approx(levels / 255, rel=0.15)


@pytest.mark.parametrize("film", [camera(right=3), square(right=4), camera(zoom=1.01)], ids=["pan", "square", "zoom"])
def test_motion_is_no_flicker(film: np.ndarray):
    assert look(film).flicker < 1.5 / 255


def test_blur_lowers_sharpness_by_its_radius():
    found = [look(blurred(camera(), radius)).sharpness for radius in (0.5, 1.0, 2.0)]
    assert found == sorted(found, reverse=True) and found[0] > 0.6 and found[-1] < 0.2
    assert look(camera(right=3)).sharpness == pytest.approx(1, abs=0.1), "another part of the same texture"


def test_a_shift_of_colour_is_its_size_and_places_do_not_count():
    film = (0.7 * camera().astype(np.float32)).astype(np.uint8)
    redder = film.copy()
    redder[1:, :, :, 0] += 30
    assert look(redder).colours == pytest.approx(30 / 255 / 3, rel=0.01)
    assert colour_distance(film[0], film[0][:, ::-1]) == 0 and colour_distance(film[0], 0 * film[0]) > 0.2


def test_a_single_frame_has_a_look():
    assert look_of(camera()[:1], None) == Look(colours=0, sharpness=1, flicker=0)


def test_a_first_frame_without_anything_sharp_has_no_share_of_it():
    flat = np.full((3, 32, 32, 3), 90, np.uint8)
    flat[1:] += np.random.default_rng(0).integers(0, 9, (2, 32, 32, 3), dtype=np.uint8)
    assert look_of(flat, flow_of(flat)).sharpness == 1
