"""Frames of a film or a still picture at the size they are drawn, from files that may be cut off, damaged or not whole
yet.

What reads clips for training is presets.clips's; who calls this, in a thread, is wanlora_tui.film.projector.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from presets.clips.file_head import boxes
from presets.errors import UserError
from presets.text import human
from wanlora_tui.film.playhead import frame_at

Frame = NDArray[np.uint8]  # height x width x 3, RGB
FORMATS = ("PNG", "JPEG", "WEBP")  # no decoder but these is let at what another machine sends
FILMS = (".mp4", ".mov", ".m4v", ".mkv", ".webm")
MOST = 48 * 2**20  # bytes of one film's frames; of a longer one every second, every third ... is kept
YOUNG_SECONDS = 10.0  # a file that is not whole and was touched since may still be written


class NotYet(UserError):
    """The file is not whole yet; it may be soon."""


class Reel:
    """What is decoded of one file so far, `box` (pixels wide, high) at the most. One thread fills it, another reads."""

    def __init__(self, path: Path, box: tuple[int, int], aspect: float = 1.0) -> None:
        self.path, self.box, self.aspect = path, box, aspect  # of a pixel of the box, width by height
        self.times: list[float] = []  # seconds, of all frames
        self.duration = 0.0
        self.every = 1  # one of so many is kept
        self.frames: list[Frame] = []
        self.problem = ""
        self.whole = False  # nothing more comes
        self.unwanted = False  # whoever fills it stops

    @property
    def nbytes(self) -> int:
        return sum(frame.nbytes for frame in self.frames[:1]) * len(self.frames)

    def at(self, seconds: float) -> Frame | None:
        """The frame of a time, or the nearest before it that is there; None while there is none."""
        frames = self.frames
        if not frames:
            return None
        return frames[min(frame_at(self.times, seconds) // self.every, len(frames) - 1)]


def fitted(width: float, height: float, box: tuple[int, int], aspect: float = 1.0) -> tuple[int, int]:
    """The largest size of a picture within a box; rows are even, for two make a cell."""
    scale = min(box[0] * aspect / width, box[1] / height)
    return max(1, min(box[0], round(width * scale / aspect))), max(2, min(box[1] // 2, round(height * scale / 2)) * 2)


def read_reel(reel: Reel, told: Callable[[], None] = lambda: None, most: int = MOST) -> None:
    """Fill a reel; problems are in it afterwards, and what was read before them. `told` is called after each frame."""
    try:
        if reel.path.suffix.lower() in FILMS:
            check_whole(reel.path)
            _read_video(reel, told, most)
        else:
            _read_pictures(reel, told, most)
    except (UserError, OSError, ValueError, EOFError, Image.DecompressionBombError) as e:
        if isinstance(e, FileNotFoundError):
            reel.problem = "it is not there"
        elif isinstance(e, UserError):
            reel.problem = e.what
        else:
            words = e.strerror if isinstance(e, OSError) and e.strerror else "its format is none of these"
            reel.problem = f"it cannot be read ({words.lower()})"
    reel.whole = not reel.unwanted


def check_whole(path: Path) -> None:
    """Raises NotYet for an mp4 that lacks some of what its boxes say, UserError when nobody has touched it for a
    while; OSError."""
    with path.open("rb") as f:
        facts = path.stat()
        ends = dict(boxes(f, facts.st_size))
    missing = max(ends.values(), default=0) - facts.st_size
    if path.suffix.lower() not in FILMS[:3] or (b"moov" in ends and missing <= 0):
        return
    if time.time() - facts.st_mtime < YOUNG_SECONDS:
        raise NotYet(f"it is still being written ({human(facts.st_size)} so far)", where=str(path))
    lacks = f"the file ends {missing:,} bytes too early" if missing > 0 else "it has no index of its frames"
    raise UserError(f"it is cut off: {lacks}", where=str(path))


def _read_video(reel: Reel, told: Callable[[], None], most: int) -> None:
    # brings FFmpeg, which nobody needs before the first film plays
    from presets.clips.video_index import Orientations, decoded, open_video, read_index

    where = str(reel.path)
    with open_video(reel.path) as (container, stream):
        index = read_index(container, stream, where=where)
        reel.times, reel.duration = index.times, index.duration
        container.seek(index.pts[0], stream=stream, backward=True)
        orientations = Orientations()
        size: tuple[int, int] | None = None
        for number, frame in enumerate(decoded(container, stream)):
            if reel.unwanted:
                return
            swap, flip_x, flip_y = orientations.of(frame)
            if size is None:
                shown = (frame.height, frame.width) if swap else (frame.width, frame.height)
                size = fitted(*shown, reel.box, reel.aspect)
                reel.every = -(-len(reel.times) * size[0] * size[1] * 3 // most)
            if number % reel.every:
                continue
            width, height = reversed(size) if swap else size
            small = frame.reformat(width, height, format="rgb24", interpolation="AREA").to_ndarray()
            small = small.transpose(1, 0, 2) if swap else small
            small = small[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
            reel.frames.append(np.ascontiguousarray(small))
            told()
    if not reel.frames:
        raise UserError("it holds no frame that can be decoded", where=where)


def _read_pictures(reel: Reel, told: Callable[[], None], most: int) -> None:
    with Image.open(reel.path, formats=FORMATS) as opened:
        size = fitted(*opened.size, reel.box, reel.aspect)
        count = getattr(opened, "n_frames", 1)
        reel.every = max(1, -(-count * size[0] * size[1] * 3 // most))
        for number, picture in enumerate(ImageSequence.Iterator(opened)):
            if reel.unwanted:
                return
            picture.load()  # before, it does not know how long it is shown
            reel.times.append(reel.duration)
            reel.duration += picture.info.get("duration", 0) / 1000
            if number % reel.every == 0:
                reel.frames.append(shrunk(picture, size))
                told()


def shrunk(picture: Image.Image, size: tuple[int, int]) -> Frame:
    """A picture at another size, as a frame."""
    smaller = size[0] < picture.width
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX if smaller else None))
