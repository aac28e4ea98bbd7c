"""Clips to frames: exact picks, at the size of a bucket. Imports no torch: data workers run this.

What is wanted is chosen here, on the clip's index of presentation times; `frame_reader` brings it and `pictures` makes
it the bucket's. Where a container gives its frames other times than its packets, frames are counted from the start:
slower, and just as exact.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Literal

import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image

from engine.data.frame_reader import TAKE_OUT, counted_index, damaged, frame_index, identity, visit
from engine.data.pictures import cover, picture_of
from presets.clips.geometry import WAN_FPS, Bucket, uniform_indices
from presets.clips.images import open_image
from presets.clips.video_index import FrameIndex, Orientations, open_video
from presets.errors import ClipError

Frames = NDArray[np.uint8]  # (frames, height, width, 3), RGB

# How many keyframes early a seek begins, one way after the other. In MPEG streams a seek is a guess that may lead too
# far, and with intra refresh no picture is whole for a while. The last way reads from the start.
WAYS: tuple[int | None, ...] = (0, 1, None)
MOST_PIXELS = 20_000_000  # in work at once: each of a decoder's threads holds frames of its own; 4K has two
_ways: dict[tuple[str, int, int], int] = {}  # the first of WAYS that leads to a file's frames; their number: none does


class DecodeRequest(Struct, frozen=True):
    """Everything that decides the pixels of one item; small, and sent to the data workers as it is."""

    path: str
    kind: Literal["video", "image"]
    bucket: Bucket
    sampling: Literal["uniform", "realtime"]
    start: float  # 0..1: where the real-time window lies in the clip; uniform sampling has no use for it
    flip_x: bool
    flip_y: bool
    hdr: Literal["plain", "tonemap"] = "plain"


class Taken(Struct, frozen=True):
    """Which frames of a clip were decoded."""

    places: list[int]  # from 0; rising, with repeats where the clip has too few
    index: FrameIndex | None  # None of an image

    @property
    def seconds(self) -> list[float]:
        """From the clip's first frame to each of these."""
        times = self.index.times if self.index else [0.0]
        return [times[place] for place in self.places]


def decode(request: DecodeRequest) -> Frames:
    """The frames of one item: uint8, (frames, height, width, 3), RGB, exactly the bucket's size. Raises ClipError."""
    bucket = request.bucket
    out = np.empty((bucket.frames, bucket.height, bucket.width, 3), np.uint8)
    decode_into(request, out)
    return out


def decode_into(request: DecodeRequest, out: Frames, *, threads: int = 1) -> Taken:
    """`decode` into an array of the bucket's shape. `threads` changes the speed alone. Raises ClipError."""
    bucket = request.bucket
    assert out.shape == (bucket.frames, bucket.height, bucket.width, 3), out.shape
    with reading(request.path):
        if request.kind == "image":
            assert bucket.frames == 1, bucket
            out[0], taken = decode_image(request.path, bucket), Taken([0], None)
        else:
            taken = _decode_video(request, out, threads)
    if request.flip_x:
        out[:] = out[:, :, ::-1].copy()
    if request.flip_y:
        out[:] = out[:, ::-1].copy()
    return taken


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Errors of the file system and of image decoders inside become ClipErrors that name the file."""
    try:
        yield
    except FileNotFoundError:
        raise ClipError(
            "is missing",
            code="clip-unreadable",
            where=path,
            fix="Put it back, or take it out of the dataset and start again",
        ) from None
    except (OSError, Image.DecompressionBombError) as e:
        raise ClipError(
            f"cannot be decoded ({str(e).lower() or 'no reason given'})",
            code="clip-unreadable",
            where=path,
            fix=TAKE_OUT,
        ) from None


# Choosing frames


def choose(index: FrameIndex, frames: int, sampling: str, start: float) -> list[int]:
    """Places in `index.pts` of the wanted frames; rising, with repeats where the clip has too few.

    uniform: evenly over the clip, first and last included, by number at a constant rate and by time at a variable one.
    realtime: 16 a second, in a window that begins at `start` (0..1) of what the clip has to spare. A wanted time gives
    the frame that is on show then. Raises ValueError when the window is longer than the clip.
    """
    if sampling == "uniform" and not index.variable_rate:
        return uniform_indices(len(index.pts), frames)
    if sampling == "uniform":
        span = (index.pts[-1] - index.pts[0]) * index.time_base
        wanted = [span * i / max(1, frames - 1) for i in range(frames)]
    else:
        duration = (index.pts[-1] - index.pts[0] + index.last_duration) * index.time_base
        window = (frames - 1) / Fraction(WAN_FPS)
        if window > duration:
            raise ValueError(
                f"runs {float(duration):.2f} s, but {frames} frames in real time take {float(window):.2f} s"
            )
        wanted = [Fraction(start) * (duration - window) + i / Fraction(WAN_FPS) for i in range(frames)]
    # Containers round times to their tick, so a frame may seem to come up to one tick late.
    gaps = [b - a for a, b in pairwise(index.pts)]
    slack = min(Fraction(1), Fraction(median_low(gaps), 4)) if gaps else Fraction(0)
    return [bisect_right(index.pts, index.pts[0] + t / index.time_base + slack) - 1 for t in wanted]


# Video


def _decode_video(request: DecodeRequest, out: Frames, threads: int) -> Taken:
    for index, back in ways_to(request.path):
        try:
            places = choose(index, len(out), request.sampling, request.start)
        except ValueError as e:
            raise ClipError(
                str(e),
                code="clip-too-short",
                where=request.path,
                fix="Take fewer frames, or take the clip out of the folder",
            ) from None
        filled = 0
        for slot, picture in pictures_at(
            request.path, index, places, request.bucket, back=back, threads=threads, hdr=request.hdr
        ):
            out[slot], filled = picture, slot + 1
        if filled == len(places):
            return Taken(places, index)
    raise not_decoding(request.path)


def ways_to(path: str) -> Iterator[tuple[FrameIndex, int | None]]:
    """(index to go by, how many keyframes early a seek begins) of each way to a video's frames, to be tried one after
    the other, beginning with the one that was last tried for this file."""
    index, file = frame_index(path), identity(path)
    if all(a < b for a, b in pairwise(index.pts)):
        for way in range(_ways.get(file, 0), len(WAYS)):
            if way:
                _ways[file] = way
            yield index, WAYS[way]
            if not index.keyframes:
                break  # there is nothing to seek
    _ways[file] = len(WAYS)
    yield counted_index(path), None


def pictures_at(
    path: str,
    index: FrameIndex,
    places: list[int],
    bucket: Bucket,
    *,
    back: int | None,
    threads: int,
    hdr: Literal["plain", "tonemap"] = "plain",
    grow: bool = False,
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(place in `places`, picture at the bucket's size) of the frames with these numbers, rising, in order; ends early
    where the decoder does not deliver one. With `grow`, pictures smaller than the bucket are enlarged. Raises
    ClipError."""
    scaler, orientations = VideoReformatter(), Orientations()
    slot = 0
    with open_video(Path(path)) as (container, stream):
        stream.codec_context.thread_type = "AUTO"
        size = stream.codec_context.width * stream.codec_context.height
        stream.codec_context.thread_count = max(1, min(threads, MOST_PIXELS // max(1, size)))
        aspect = stream.sample_aspect_ratio or Fraction(1)
        try:
            for place, frame in visit(container, stream, index, sorted(set(places)), back):
                if frame.is_corrupt:
                    raise damaged(path, index.times[place])
                turn = orientations.of(frame)
                picture = picture_of(frame, turn, aspect, bucket, scaler, path, hdr, grow=grow)
                while slot < len(places) and places[slot] == place:
                    yield slot, picture
                    slot += 1
        except FFmpegError:
            return  # counting from the start will show where


def not_decoding(path: str) -> ClipError:
    return ClipError("has frames that do not decode", code="clip-unreadable", where=path, fix=TAKE_OUT)


# Images


def decode_image(path: str, bucket: Bucket, *, grow: bool = False) -> NDArray[np.uint8]:
    """A still picture at the bucket's size. Raises OSError or ClipError, the latter for one that would have to grow and
    may not."""
    image = open_image(path, at_least=(bucket.width, bucket.height))
    cover(image.width, image.height, bucket.width, bucket.height, path, grow=grow)
    scale = max(bucket.width / image.width, bucket.height / image.height)
    left, top = (image.width - bucket.width / scale) / 2, (image.height - bucket.height / scale) / 2
    box = (max(0.0, left), max(0.0, top), min(image.width, image.width - left), min(image.height, image.height - top))
    return np.asarray(image.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box))
