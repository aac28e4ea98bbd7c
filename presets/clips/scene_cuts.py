"""Scene cuts: the frames of a clip where a new shot begins. A LoRA trained on clips with cuts learns to cut.

A cut is a lone jump: the picture changes far more than around it, not as something that moved would change it, and what
was there before does not come back. So pans, fast motion, flashes, switched lights and fades are not taken for cuts;
nor are jumps in time within one shot, whose pictures resemble each other.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from presets.clips.damage import whole_frames
from presets.look import never_ends

Picture = NDArray[np.uint8]  # height x width x 3, RGB

LONG_SIDE = 64  # pixels; enough to tell shots apart, and small enough that noise and compression average out
REACH = 4  # pixels a block may have moved between two frames: 6% of the long side
BLOCK = 8
NEAR = 8  # frames on each side that a jump must stand out from
LEAST_CHANGE = 0.03  # mean change of the pixels below which nothing is looked at more closely
LEAST_JUMP = 0.12  # see _jump; cuts of real footage have 0.4 to 1, its fastest motion has 0.17
# times the third largest jump near by: two more cuts may be near, while a motion or a fade lasts longer
STANDS_OUT = 3.0
COMES_BACK = 0.5  # of the jump: a smaller difference across it says that the scene is still the same, as after a flash
LEAST_CONTRAST = 0.05  # standard deviation; darker and flatter pictures count as having this much


def find_cuts(path: Path, raise_if_ended: Callable[[], None] = never_ends) -> list[int]:
    """Numbers of the frames that begin a new shot, rising; [] for a clip of one shot.

    Decodes the clip once, all of it; raises ClipError for one that is damaged or not of one size. `raise_if_ended` is
    called between frames; what it raises ends the search.
    """
    return cuts_of(_small_pictures(path, raise_if_ended), raise_if_ended)


def cuts_of(pictures: list[Picture], raise_if_ended: Callable[[], None] = never_ends) -> list[int]:
    """The same for frames that are decoded already and brought to about LONG_SIDE pixels, both sides a multiple of
    BLOCK."""
    count = len(pictures)
    known: dict[tuple[int, int], float] = {}

    def jump(a: int, b: int) -> float:
        if (a, b) not in known:
            known[a, b] = _jump(pictures[a], pictures[b])
        return known[a, b]

    found: list[int] = []
    for i in range(1, count):
        raise_if_ended()
        if _change(pictures[i - 1], pictures[i]) < LEAST_CHANGE or (size := jump(i - 1, i)) < LEAST_JUMP:
            continue
        near = sorted(
            (jump(j - 1, j) for j in range(max(1, i - NEAR), min(count, i + NEAR + 1)) if j != i), reverse=True
        )
        if len(near) > 2 and size < STANDS_OUT * near[2]:
            continue
        across = ((a, b) for a in range(max(0, i - 3), i) for b in range(i, min(count, i + 3)) if b - a > 1)
        if any(jump(a, b) < COMES_BACK * size for a, b in across):
            continue
        if found and i - found[-1] <= 2:  # one blended frame between two shots looks like two jumps
            found[-1] = max(found[-1], i, key=lambda k: jump(k - 1, k))
        else:
            found.append(i)
    return found


def _small_pictures(path: Path, raise_if_ended: Callable[[], None]) -> list[Picture]:
    pictures: list[Picture] = []
    for frame in whole_frames(path):
        raise_if_ended()
        scale = LONG_SIDE / max(frame.width, frame.height)
        width, height = (max(BLOCK, round(side * scale / BLOCK) * BLOCK) for side in (frame.width, frame.height))
        pictures.append(
            np.asarray(
                frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray(), np.uint8
            )
        )
    return pictures


def _change(a: Picture, b: Picture) -> float:
    """Mean difference of the pixels, 0 to 1."""
    return float(np.abs(a.astype(np.int16) - b).mean()) / 255


def _jump(one: Picture, next_one: Picture) -> float:
    """How little of `next_one` comes from `one`: 0 for the same scene, near 1 for unrelated ones.

    The mean difference after each block of it is matched to the most similar place near by in `one`, over the pictures'
    contrast (what motion does not explain), times 1 - their correlation (what a change of light does not explain).
    """
    a, b = one.astype(np.float32) / 255, next_one.astype(np.float32) / 255
    height, width = a.shape[:2]
    padded = np.pad(a, ((REACH, REACH), (REACH, REACH), (0, 0)), mode="edge")
    best = np.full((height // BLOCK, width // BLOCK), np.inf, np.float32)
    for dy in range(2 * REACH + 1):
        for dx in range(2 * REACH + 1):
            difference = np.abs(padded[dy : dy + height, dx : dx + width] - b)
            blocks = difference.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK * 3).mean(axis=(1, 3))
            np.minimum(best, blocks, out=best)
    return float(best.mean() / max(a.std(), b.std(), LEAST_CONTRAST)) * (
        1 - _correlation(a.mean(axis=-1), b.mean(axis=-1))
    )


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """0 to 1; 0 for pictures too flat to tell."""
    if min(a.std(), b.std()) < LEAST_CONTRAST / 2:
        return 0.0
    return max(0.0, float(np.corrcoef(a.ravel(), b.ravel())[0, 1]))
