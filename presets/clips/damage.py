"""Is a clip whole? Every frame of it is decoded, and a file that is damaged, or changes its size on the way, is an
error that tells where.

What FFmpeg passes over is found by `presets.clips.matroska` and `presets.clips.transport_stream`.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.container

from presets.clips.file_head import AGAIN, unreadable
from presets.clips.matroska import damaged_clusters
from presets.clips.transport_stream import CLOCK, WRAP, hole_in
from presets.clips.video_index import (
    Orientations,
    changed_size,
    from_keyframe,
    open_video,
    size_as_viewed,
    time_of,
)
from presets.errors import ClipError

# The H.264 decoder marks what it had to make up. Most others do so only in words, which this turns into errors; with
# H.264 it would also refuse sound clips that were cut from longer ones between two keyframes of an open group.
STRICT = {"err_detect": "explode"}
MARKS_ITSELF = "h264"
AVI_SLACK = 2  # frames that the header of an AVI may promise too much
REMUX = "If it plays whole, copy what is in it into a new file: ffmpeg -i OLD -c copy NEW"
# of the promised time, and seconds: Matroska does not tell how long the last frame stays, which may be long
MATROSKA_SHARE, MATROSKA_SLACK = 0.25, 1.0


def whole_frames(path: Path) -> Iterator[av.VideoFrame]:
    """Every frame that a clip shows, in order. Raises ClipError, naming the second, at the first that is damaged or of
    another size, and at the end when some are missing."""
    with open_video(path) as (container, stream):
        if stream.codec_context.name != MARKS_ITSELF:
            stream.codec_context.options = STRICT
        begin, begun, end, size, orientations = None, False, 0, None, Orientations()
        for packet in from_keyframe(container, stream):
            time = time_of(packet)
            begin = time if begin is None else begin
            end = max(end, (time or 0) + (packet.duration or 0))
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                if packet.size and (time is None or time < (begin or 0)):
                    continue  # it is shown before the first keyframe, and needs what lies before it
                raise _damaged(path, _seconds(stream, begin, time if packet.size else end)) from None
            for frame in frames:
                begun = begun or begin is None or frame.pts is None or frame.pts >= begin
                if not begun:
                    continue
                at = _seconds(stream, begin, frame.pts if frame.pts is not None else time)
                if frame.is_corrupt:
                    raise _damaged(path, at)
                now = size_as_viewed(frame, stream, orientations.of(frame)[0])
                if size is not None and now != size:
                    raise changed_size(path, size, now, at)
                size = now
                yield frame
        _check_container(path, container, stream, begin, end)


def _damaged(path: Path, seconds: float) -> ClipError:
    return unreadable(f"is damaged from {seconds:.1f} s on: a frame there does not decode", str(path))


def _check_container(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream, begin: int | None, end: int
) -> None:
    """What decodes is all that the file once held, as far as its container can tell. Raises ClipError."""
    if (span := damaged_clusters(path)) is not None:
        zero = _seconds(stream, 0, begin)
        where = (
            f"from {span[0] - zero:.1f} s on"
            if span[0] == span[1]
            else f"between {span[0] - zero:.1f} and {span[1] - zero:.1f} s"
        )
        what = f"is damaged {where}: what lies there in the file is not what was written"
        raise unreadable(what, str(path), f"{AGAIN}. {REMUX}")
    if container.format.name == "mpegts" and (hole := hole_in(path, stream.id)) is not None:
        ticks = 0 if hole.pts is None else (hole.pts - round(_seconds(stream, 0, begin) * CLOCK)) % WRAP
        at = ticks / CLOCK if ticks < WRAP // 2 else 0.0
        what = (
            "is truncated: it ends in the middle of a packet"
            if hole.at_end
            else f"is damaged from {at:.1f} s on: packets of its picture are missing there"
        )
        raise unreadable(what, str(path), f"{AGAIN}. {REMUX}")
    found = _seconds(stream, 0, end)
    if container.format.name == "avi":
        promised, slack = _seconds(stream, 0, stream.duration), _seconds(stream, 0, AVI_SLACK)
    else:
        promised = _promised_by_matroska(container, stream) if "matroska" in container.format.name else 0.0
        slack = max(MATROSKA_SLACK, MATROSKA_SHARE * promised)
    if promised - found > slack + 1e-6:
        what = f"is damaged: its header promises {promised:.1f} s, and only {found:.1f} s are there"
        raise unreadable(what, str(path), f"{AGAIN}. {REMUX}")


def _promised_by_matroska(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds of the picture, by the header and the stream's own tag; 0 where they do not tell it apart from the
    sound's."""
    whole = (container.duration or 0) / av.time_base
    if tagged := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
        return min(whole, int(tagged[1]) * 3600 + int(tagged[2]) * 60 + float(tagged[3]))
    return whole if len(container.streams) == 1 else 0.0


def _seconds(stream: av.VideoStream, begin: int | None, time: int | None) -> float:
    assert stream.time_base is not None
    return max(0.0, float(((time or 0) - (begin or 0)) * Fraction(stream.time_base)))
