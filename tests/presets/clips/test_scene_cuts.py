from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from presets.clips.scene_cuts import find_cuts
from presets.errors import ClipError
from tests.helpers.footage import real_clips
from tests.helpers.videos import Picture, numbered, write_clip

WIDTH, HEIGHT = 192, 112
Shot = Callable[[int], Picture]  # the picture at a time, in frames


@cache
def scene(seed: int, *, bright: float = 1.0) -> Picture:
    """A wide picture of soft shapes in a few colours, larger than a frame so that a camera can move over it."""
    random = np.random.default_rng(seed)
    picture = np.full((HEIGHT * 3, WIDTH * 6, 3), random.integers(20, 235, 3), np.uint8)
    for _ in range(140):
        cx, cy, wide, high = (int(v) for v in random.uniform((0, 0, 8, 8), (WIDTH * 6, HEIGHT * 3, 60, 60)))
        y, x = np.ogrid[-high:high, -wide:wide]
        left, top = max(0, cx - wide), max(0, cy - high)
        inside = ((x / wide) ** 2 + (y / high) ** 2 < 1)[top - cy + high :, left - cx + wide :]
        spot = picture[top : cy + high, left : cx + wide]
        spot[inside[: spot.shape[0], : spot.shape[1]]] = random.integers(0, 255, 3)
    return (picture * bright).astype(np.uint8)


def at(picture: Picture, x: float, y: float = 0.0) -> Picture:
    x0, y0 = round(x), round(y)
    return np.ascontiguousarray(picture[y0 : y0 + HEIGHT, x0 : x0 + WIDTH])


def pan(seed: int, speed: float, *, bright: float = 1.0) -> Shot:
    wide = scene(seed, bright=bright)
    return lambda t: at(wide, t * speed)


def edit(*shots: tuple[Shot, int]) -> tuple[Shot, int, list[int]]:
    """Shots one after the other: the picture of each frame, the number of frames, and the cuts."""
    starts = np.cumsum([0, *(length for _, length in shots)])

    def picture(i: int) -> Picture:
        number = int(np.searchsorted(starts, i, side="right")) - 1
        return shots[number][0](i - int(starts[number]))

    return picture, int(starts[-1]), [int(s) for s in starts[1:-1]]


def cuts_in(tmp_path: Path, picture: Shot, frames: int) -> list[int]:
    return find_cuts(write_clip(tmp_path / "clip.mp4", frames=frames, width=WIDTH, height=HEIGHT, picture=picture))


@pytest.mark.parametrize(
    "shots",
    [
        [(pan(1, 0), 20), (pan(2, 0), 20), (pan(3, 0), 20)],
        [(pan(4, 3), 25), (pan(5, 0), 7), (pan(6, 5), 6), (pan(7, 1), 30)],  # moving shots, two of them short
        [(pan(8, 2), 1), (pan(9, 2), 30), (pan(10, 2), 1)],  # a frame of the shots before and after was left in
        [(pan(11, 2, bright=0.2), 20), (pan(12, 1, bright=0.2), 20)],  # night
        [(pan(13, 1), 2), (pan(14, 1), 2)],
        [
            (lambda t: np.full((HEIGHT, WIDTH, 3), (200, 30, 30), np.uint8), 10),
            (lambda t: np.full((HEIGHT, WIDTH, 3), (30, 30, 200), np.uint8), 10),
        ],
    ],
    ids=["still", "moving", "left-over frames", "dark", "tiny", "flat"],
)
def test_hard_cuts_are_found_to_the_frame(tmp_path: Path, shots: list[tuple[Shot, int]]) -> None:
    picture, frames, cuts = edit(*shots)
    assert cuts_in(tmp_path, picture, frames) == cuts


def test_many_cuts(tmp_path: Path) -> None:
    picture, frames, cuts = edit(*((pan(20 + i, i % 4), 9 + i) for i in range(8)))
    assert cuts_in(tmp_path, picture, frames) == cuts


def moving_subject(t: int) -> Picture:
    picture = at(scene(30), 100, 20).copy()
    left = abs((t * 4) % 280 - 140)  # to and fro
    picture[30:90, left : left + 50] = (250, 240, 60)
    return picture


WIDE = scene(31)
OTHER = at(scene(32), 0)
STILL = at(WIDE, 0)


def mixed(share: float, a: Picture = STILL, b: Picture = OTHER) -> Picture:
    return (a * (1 - share) + b * share).astype(np.uint8)


def zoom(t: int) -> Picture:
    step = 1 + t * 0.03
    y, x = (np.arange(HEIGHT) * step).astype(int), (np.arange(WIDTH) * step).astype(int)
    return np.ascontiguousarray(WIDE[np.minimum(y, WIDE.shape[0] - 1)][:, np.minimum(x, WIDE.shape[1] - 1)])


def ease(t: float, length: float) -> float:
    s = min(1.0, max(0.0, t / length))
    return s * s * (3 - 2 * s)


@pytest.mark.parametrize(
    "picture",
    [
        moving_subject,
        lambda t: at(WIDE, t * 2),
        lambda t: at(WIDE, t * 14),
        lambda t: at(WIDE, 700 * ease(t - 20, 14)),  # a whip pan: still, very fast, still
        lambda t: at(WIDE, t // 2 * 9),  # drawn on twos
        lambda t: at(WIDE, t // 3 * 12),
        lambda t: at(WIDE, 2 * (t - 5 if 20 <= t < 25 else t)),  # a hiccup: goes back and jumps ahead
        lambda t: at(WIDE, 2 * (20 if 20 <= t < 25 else t)),  # freezes, then catches up
        zoom,
        lambda t: at(WIDE, 100 + 20 * np.sin(t * 1.3), 40 + 12 * np.sin(t * 1.7)),  # a shaking hand
        lambda t: np.full_like(STILL, 250) if t == 20 else at(WIDE, t),  # a flash
        lambda t: mixed(0.8, at(WIDE, t), np.full_like(STILL, 255)) if t in (20, 21) else at(WIDE, t),
        lambda t: mixed(0.6, at(WIDE, t), np.zeros_like(STILL)) if t >= 20 else at(WIDE, t),  # the light goes out
        lambda t: mixed(ease(t - 10, 24)),  # a dissolve
        # out to black, in from black
        lambda t: (
            mixed(ease(t - 10, 12), at(WIDE, t), np.zeros_like(STILL))
            if t < 24
            else mixed(1 - ease(t - 24, 12), OTHER, np.zeros_like(STILL))
        ),
        lambda t: STILL,
        lambda t: np.random.default_rng(t).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8),  # snow
        lambda t: numbered(t + 10, WIDTH, HEIGHT),
    ],
    ids=[
        "subject",
        "slow pan",
        "fast pan",
        "whip pan",
        "twos",
        "threes",
        "hiccup",
        "freeze",
        "zoom",
        "shake",
        "flash",
        "long flash",
        "light off",
        "dissolve",
        "fades",
        "still",
        "snow",
        "numbered",
    ],
)
def test_one_shot_has_no_cuts(tmp_path: Path, picture: Shot) -> None:
    assert cuts_in(tmp_path, picture, 48) == []


def test_a_cut_through_one_blended_frame_is_one_cut(tmp_path: Path) -> None:
    found = cuts_in(tmp_path, lambda t: STILL if t < 20 else mixed(0.5) if t == 20 else OTHER, 40)
    assert found in ([20], [21])


def test_a_blend_of_flat_pictures_is_one_cut(tmp_path: Path) -> None:
    red, blue = (np.full((HEIGHT, WIDTH, 3), colour, np.uint8) for colour in ((220, 20, 20), (20, 20, 220)))
    assert len(cuts_in(tmp_path, lambda t: red if t < 20 else mixed(0.4, red, blue) if t == 20 else blue, 40)) == 1


def test_portrait_and_tiny_clips(tmp_path: Path) -> None:
    def picture(t: int) -> Picture:
        return np.ascontiguousarray((STILL if t < 10 else OTHER)[:, :64])

    assert find_cuts(write_clip(tmp_path / "tall.mp4", frames=20, width=64, height=HEIGHT, picture=picture)) == [10]
    assert find_cuts(
        write_clip(
            tmp_path / "tiny.mp4",
            frames=20,
            width=16,
            height=16,
            picture=lambda t: np.ascontiguousarray(picture(t)[40:56, 8:24]),
        )
    ) == [10]
    assert find_cuts(
        write_clip(
            tmp_path / "wide.mp4",
            frames=20,
            width=WIDTH,
            height=16,
            picture=lambda t: np.ascontiguousarray((STILL if t < 10 else OTHER)[:16]),
        )
    ) == [10]
    assert find_cuts(write_clip(tmp_path / "one.mp4", frames=1)) == []


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(ClipError, match=r"x\.mp4"):
        find_cuts(tmp_path / "x.mp4")


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("bikes.mp4", [30, 76, 137, 187, 242]),
        ("bigbuckbunny.mp4", []),
        ("carphone_pristine.mp4", []),
        ("carphone_distorted.mp4", []),
    ],
)
def test_real_footage(name: str, cuts: list[int]) -> None:
    assert find_cuts(real_clips() / name) == cuts
