"""Flow, camera and subject of films whose motion is known."""

import builtins

import numpy as np
import pytest

from engine.judge.motion import flow_of, motion_of, opencv
from presets.errors import UserError
from presets.report.measures import DIRECTIONS, Motion, agreement
from tests.helpers.drawn_films import HEIGHT, WIDTH, camera, square

pytest.importorskip("cv2", reason="the extra `judge` is not installed")
SECOND = 16 / WIDTH  # widths a second of a pixel a frame


def motion(film: np.ndarray) -> Motion:
    return motion_of(flow_of(film))


def share(found: Motion, *names: str) -> float:
    return sum(found.directions[DIRECTIONS.index(name)] for name in names)


@pytest.mark.parametrize(("right", "name"), [(3, "right"), (-2, "left")])
def test_a_square_that_moves_is_the_subject_and_the_camera_is_still(right: int, name: str):
    found = motion(square(right=right))
    assert found.subject_speed == pytest.approx(abs(right) * SECOND, rel=0.1)
    assert share(found, name) > 0.85
    assert found.subject_share == pytest.approx(30 * 30 / (WIDTH * HEIGHT), rel=0.4)
    for still in (found.camera.right, found.camera.down, found.camera.zoom):
        assert abs(still) < 0.02


def test_down_is_down():
    found = motion(square(right=0, down=2))
    assert share(found, "down") > 0.85 and found.subject_speed == pytest.approx(2 * SECOND, rel=0.1)


def test_a_pan_is_the_camera_and_the_picture_goes_the_other_way():
    found = motion(camera(right=2))
    assert found.camera.right == pytest.approx(2 * SECOND, rel=0.03) and abs(found.camera.down) < 0.01
    assert found.speed == pytest.approx(2 * SECOND, rel=0.03) and share(found, "left") > 0.95
    assert found.subject_share < 0.05
    down = motion(camera(down=-1)).camera
    assert down.down == pytest.approx(-SECOND, rel=0.05) and abs(down.right) < 0.01


@pytest.mark.parametrize("zoom", [1.01, 0.98])
def test_a_zoom(zoom: float):
    found = motion(camera(zoom=zoom)).camera
    assert found.zoom == pytest.approx(zoom**16 - 1, rel=0.1) and abs(found.roll) < 1 and abs(found.right) < 0.01


@pytest.mark.parametrize("roll", [1.0, -0.5])
def test_a_roll(roll: float):
    found = motion(camera(roll=roll)).camera
    assert found.roll == pytest.approx(16 * roll, rel=0.1) and abs(found.zoom) < 0.02


def test_a_camera_that_follows_leaves_the_subject_its_own_motion():
    """The square moves 3 to the right while the camera pans 2 to the right: on the screen it gains one a frame."""
    film = camera(right=2).copy()
    patch = square(right=0)[0][20:50, 20:50]
    for t, frame in enumerate(film):
        frame[20:50, 20 + t : 50 + t] = patch
    found = motion(film)
    assert found.camera.right == pytest.approx(2 * SECOND, rel=0.05)
    assert found.subject_speed == pytest.approx(3 * SECOND, rel=0.15)


def test_the_same_motion_at_twice_the_size_and_one_at_rest():
    small, large = (motion(film) for film in (camera(right=2), camera(right=2).repeat(2, 1).repeat(2, 2)))
    assert large.camera.right == pytest.approx(small.camera.right, rel=0.05)
    still = motion(camera())
    assert still.speed == 0 and still.directions == [0.0] * 8 and still.subject_speed == 0


def test_motion_agrees_with_itself_and_not_with_its_opposite():
    films = {
        "right": square(right=3),
        "left": square(right=-3),
        "down": square(right=0, down=2),
        "pan": camera(right=2),
        "pan back": camera(right=-2),
        "in": camera(zoom=1.01),
        "out": camera(zoom=1 / 1.01),
        "clockwise": camera(roll=1),
        "anticlockwise": camera(roll=-1),
    }
    found = {name: motion(film) for name, film in films.items()}
    for one, other in (("right", "left"), ("pan", "pan back"), ("in", "out"), ("clockwise", "anticlockwise")):
        for a, b in ((one, other), (other, one)):
            assert agreement(found[a], found[a]) == pytest.approx(1)
            assert agreement(found[a], found[b]) < 0.15, (a, b)
    assert agreement(found["pan"], found["in"]) < 0.2 and agreement(found["right"], found["down"]) < 0.2
    assert agreement(motion(camera(right=1)), found["pan"]) == pytest.approx(1, abs=0.03), "half as fast, the same way"
    elsewhere = motion(square(right=3)[:, ::-1])
    assert agreement(elsewhere, found["right"]) > 0.9, "a subject may do the same at another place"
    still = motion(camera())
    assert agreement(still, found["pan"]) is None and agreement(found["pan"], still) is None


def test_without_the_library_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name: str, *args, **rest):
        if name == "cv2":
            raise ImportError(name)
        return real(name, *args, **rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"needs OpenCV.*wanlora-tui\[judge\]"):
        opencv()
