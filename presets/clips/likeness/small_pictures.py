"""A few frames of a clip as small pictures, to look at. The very pixels that train are engine.data.frames's; which
frames those are is `training_view`.
"""

from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray

from presets.clips.file_head import unreadable
from presets.clips.geometry import square_pixels
from presets.clips.video_index import (
    FrameIndex,
    decoded,
    is_untagged_hd,
    open_video,
    orientation,
    read_index,
    reason_of,
)
from presets.look import never_ends

Picture = NDArray[np.uint8]  # height x width x 3, RGB
END = float("inf")  # the time of a clip's last frame


def pictures_at(
    path: Path, times: list[float], longest: int, raise_if_ended: Callable[[], None] = never_ends
) -> list[Picture]:
    """The frames of a video that are on show at these times (seconds, rising), upright, in square pixels, their longer
    side `longest` pixels. Raises ClipError; `raise_if_ended` is called between frames."""
    found: list[Picture] = []
    with open_video(path) as (container, stream):
        index = read_index(container, stream, where=str(path), raise_if_ended=raise_if_ended)
    shown = index.times
    places = [max(0, bisect_right(shown, t + 1e-3) - 1) for t in times]
    with open_video(path) as (container, stream):
        aspect = stream.sample_aspect_ratio or Fraction(1)
        try:
            at = -1
            frames = decoded(container, stream)
            frame: av.VideoFrame | None = None
            for place in places:
                if place != at and _seeks(index, place, at):
                    container.seek(index.pts[place], stream=stream, backward=True)
                    frames = decoded(container, stream)
                    frame = _until(frames, index.pts[place], raise_if_ended)
                elif place != at:
                    frame = (
                        _until(frames, index.pts[place], raise_if_ended)
                        if index.keyframes
                        else _counted(frames, place - at, raise_if_ended)
                    )
                at = place
                if frame is None:
                    raise unreadable(f"has no frame that decodes at {shown[place]:.1f} s", str(path))
                found.append(_small(frame, aspect, longest))
        except av.error.FFmpegError as e:
            raise unreadable(f"does not decode ({reason_of(e)})", str(path)) from None
    return found


def image_picture(path: Path, longest: int) -> Picture:
    """The same of a still image. Raises ClipError."""
    from PIL import Image

    from presets.clips.images import open_image

    try:
        image = open_image(path, at_least=(longest, longest))
    except (OSError, Image.DecompressionBombError) as e:
        raise unreadable(f"cannot be decoded ({str(e).lower() or 'no reason given'})", str(path)) from None
    scale = min(1.0, longest / max(image.size))
    return np.asarray(image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))))


def _seeks(index: FrameIndex, place: int, at: int) -> bool:
    """Whether a keyframe lies between the frame that was decoded last and the one wanted."""
    if not index.keyframes:
        return False
    key = bisect_right(index.keyframes, index.pts[place]) - 1
    return key > 0 and index.keyframes[key] > index.pts[max(0, at)]


def _until(frames: object, pts: int, raise_if_ended: Callable[[], None]) -> av.VideoFrame | None:
    """The frame with this time or, where a file tells its times otherwise, the next one."""
    last = None
    for frame in frames:  # type: ignore[attr-defined]
        raise_if_ended()
        last = frame
        if frame.pts is None or frame.pts >= pts:
            break
    return last


def _counted(frames: object, number: int, raise_if_ended: Callable[[], None]) -> av.VideoFrame | None:
    last = None
    for _, frame in zip(range(number), frames, strict=False):  # type: ignore[call-overload]
        raise_if_ended()
        last = frame
    return last


def _small(frame: av.VideoFrame, aspect: Fraction, longest: int) -> Picture:
    swap, flip_x, flip_y = orientation(frame)
    square_w, square_h = square_pixels(frame.width, frame.height, aspect)
    scale = min(1.0, longest / max(square_w, square_h))
    picture: NDArray[Any] = frame.reformat(
        width=max(1, round(square_w * scale)),
        height=max(1, round(square_h * scale)),
        format="rgb24",
        src_colorspace=Colorspace.ITU709 if is_untagged_hd(frame) else None,
        interpolation="AREA",
    ).to_ndarray()
    if swap:
        picture = picture.transpose(1, 0, 2)
    if flip_x:
        picture = picture[:, ::-1]
    return picture[::-1] if flip_y else picture
