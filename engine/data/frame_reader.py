"""The frames of a video that are asked for by their place: sought where that leads to them, and else counted.

Which places are wanted is chosen in `frames`, on the clip's index of presentation times (packets are read for it,
nothing is decoded). What pixels a decoded frame gives is `pictures`'s.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

from av.error import BlockingIOError, EOFError, FFmpegError
from av.filter import Graph

from presets.clips.geometry import WAN_FPS
from presets.clips.video_index import FrameIndex, decoded, open_video, read_index
from presets.errors import ClipError

SEEK_GAIN = 24  # frames that a seek must save: it empties the decoder's pipeline
TAKE_OUT = "Re-encode it, or take it out of the folder"
# Whole pictures of a frame's two fields, as many as there were frames. FFmpeg, libavfilter/vf_bwdif.c
DEINTERLACER, HOW = "bwdif", "mode=send_frame:parity=auto:deint=interlaced"


def frame_index(path: str) -> FrameIndex:
    """When each frame of a video is shown, remembered until the file changes. Raises ClipError or FileNotFoundError."""
    return _read_index(*identity(path))


def counted_index(path: str) -> FrameIndex:
    """The same for a clip whose packets mislead: every frame is decoded, and they are counted from the start."""
    return _counted_index(*identity(path))


def identity(path: str) -> tuple[str, int, int]:
    """(path, time of change, size): another content has another one. Raises FileNotFoundError."""
    stat = Path(path).stat()
    return path, stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=512)
def _read_index(path: str, _mtime: int, _size: int) -> FrameIndex:
    with open_video(Path(path)) as (container, stream):
        return read_index(container, stream, where=path)


@lru_cache(maxsize=512)
def _counted_index(path: str, _mtime: int, _size: int) -> FrameIndex:
    with open_video(Path(path)) as (container, stream):
        times: list[Any] = []
        try:
            for frame in decoded(container, stream):
                times.append(frame.pts)
        except FFmpegError:
            seconds = (times[-1] - times[0]) * Fraction(stream.time_base or 1) if times and None not in times else 0
            raise damaged(path, float(seconds)) from None
        rate = stream.average_rate or stream.guessed_rate or Fraction(WAN_FPS)
        assert stream.time_base
        tick = Fraction(stream.time_base)
    if not times:
        raise ClipError("holds no frame that can be decoded", code="clip-unreadable", where=path, fix=TAKE_OUT)
    if None in times or any(b <= a for a, b in pairwise(times)):
        return FrameIndex(list(range(len(times))), 1 / rate, 1, [])
    return FrameIndex(times, tick, median_low(b - a for a, b in pairwise(times)) if len(times) > 1 else 1, [])


def damaged(path: str, seconds: float) -> ClipError:
    return ClipError(
        f"is damaged at {seconds:.1f} s: a frame there does not decode",
        code="clip-unreadable",
        where=path,
        fix=TAKE_OUT,
    )


class _Forward:
    """Frames as they are decoded, and for an interlaced one that before it (if it is interlaced, too) and, when asked,
    that after it. Others are let go of at once: of 4K, each is 12 MB."""

    def __init__(self, frames: Iterable[Any]) -> None:
        self._frames = iter(frames)
        self._last: Any = None
        self._ahead: Any = None
        self.before: Any = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        frame = next(self._frames) if self._ahead is None else self._ahead
        self.before, self._last, self._ahead = self._last, frame if frame.interlaced_frame else None, None
        return frame

    def after(self) -> Any:
        if self._ahead is None:
            self._ahead = next(self._frames, None)
        return self._ahead


def visit(
    container: Any, stream: Any, index: FrameIndex, wanted: list[int], back: int | None = 0
) -> Iterator[tuple[int, Any]]:
    """(place, frame) of each wanted place, in order; ends early when one does not come by seeking. Counting from the
    start also gives each damaged frame on the way: what follows it shows it.

    A seek goes to the keyframe `back` before the nearest one; with None there is none.
    """
    at, frames = 0, _Forward(decoded(container, stream))  # at: the place that is decoded next
    if not index.keyframes:
        places = set(wanted)
        for place, frame in enumerate(frames):
            if place in places or frame.is_corrupt:
                yield place, _whole(frame, frames)
            if place == wanted[-1]:
                return
        return

    def seek(place: int) -> _Forward:
        container.seek(index.pts[place], stream=stream, backward=True)
        return _Forward(decoded(container, stream))

    for place in wanted:
        if back is not None and (key := _keyframe(index, place, back)) - at >= SEEK_GAIN:
            frames = seek(key)
        frame = _forward_to(frames, index.pts[place])
        if frame is not None and frame.interlaced_frame and frames.before is None and place and back is not None:
            frames = seek(_keyframe(index, place - 1, back))  # its fields are told from those of the frame before
            frame = _forward_to(frames, index.pts[place])
        if frame is None:
            return
        at = place + 1
        yield place, _whole(frame, frames)


def _keyframe(index: FrameIndex, place: int, back: int) -> int:
    """The place of the keyframe that decoding of `place` begins at, `back` keyframes early."""
    key = bisect_right(index.keyframes, index.pts[place]) - 1 - back
    return max(0, bisect_right(index.pts, index.keyframes[max(0, key)]) - 1)


def _forward_to(frames: Iterable[Any], pts: int) -> Any:
    """The frame with this time, or None when the decoder passes it by or marks one on the way as damaged."""
    for frame in frames:
        if frame.pts is None or frame.pts > pts or frame.is_corrupt:
            return None
        if frame.pts == pts:
            return frame
    return None


def _whole(frame: Any, frames: _Forward) -> Any:
    """The frame that was given last, with the picture of one moment where it holds two fields of two."""
    if not frame.interlaced_frame or frame.is_corrupt:
        return frame
    after = frames.after()
    around = [frames.before, frame, after if after is not None and not after.is_corrupt else None]
    window = [f for f in around if f is not None and (f.width, f.height) == (frame.width, frame.height)]
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000), name="in"
    )
    graph.link_nodes(source, graph.add(DEINTERLACER, HOW), graph.add("buffersink")).configure()
    pictures = []
    for number, each in enumerate([*window, None]):
        if each is None:
            graph.push(None)
        else:
            time = each.pts, each.time_base
            each.pts, each.time_base = number, Fraction(1, 1000)
            graph.push(each)
            each.pts, each.time_base = time
        try:
            while True:
                pictures.append(graph.pull())
        except (BlockingIOError, EOFError):
            continue
    picture: Any = pictures[window.index(frame)]
    picture.pts, picture.time_base = frame.pts, frame.time_base
    return picture
