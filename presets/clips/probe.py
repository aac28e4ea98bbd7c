"""Proving that a file can serve as a clip, and what it holds. Only this and `damage` decode in the presets.

A video is trusted only when its container is complete, every picture has a time, and its first and last frames decode:
what fails here would otherwise fail hours into a training. An image decodes whole.
"""

from collections.abc import Callable
from pathlib import Path

import av
import av.container
import msgspec
from msgspec import Struct

from presets.clips.file_head import animation, read_head, refuse_foreign, refuse_incomplete
from presets.clips.video_index import (
    decoded,
    is_untagged_hd,
    open_video,
    orientation,
    read_index,
    reason_of,
    unreadable,
)
from presets.errors import ClipError
from presets.look import never_ends

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# by orientation()
ROTATIONS = {
    (False, False, False): 0,
    (False, True, False): 0,
    (False, False, True): 0,
    (False, True, True): 180,
    (True, False, False): 90,
    (True, False, True): 90,
    (True, True, True): 270,
    (True, True, False): 270,
}
HDR_TRANSFERS = (16, 18)  # PQ and HLG, ITU-T H.273 table 3


class VideoFile(Struct, frozen=True, kw_only=True):
    """One video. Sizes are those of the stored frames, before rotation."""

    frames: int
    fps: float
    duration: float
    variable_rate: bool
    width: int
    height: int
    # degrees to turn a stored frame counterclockwise: numpy.rot90(frame, rotation // 90); a mirrored one is turned, not
    # mirrored
    rotation: int
    codec: str
    pixel_aspect: float  # width of a pixel divided by its height
    hdr: bool
    untagged_hd: bool  # read as BT.709 although the file does not say so


def probe_video(path: Path, raise_if_ended: Callable[[], None] = never_ends) -> VideoFile:
    """Facts of a video file whose first and last frames decode. Raises ClipError for everything else.

    `raise_if_ended` is called between packets and between frames; what it raises ends the reading.
    """
    where = str(path)
    head, size = read_head(path)
    refuse_foreign(head, where)
    refuse_incomplete(path, size, where)
    with open_video(path) as (container, stream):
        index = read_index(container, stream, where=where, raise_if_ended=raise_if_ended)
        first, last = _decode_first(path, raise_if_ended), _decode_last(path, index.keyframes, raise_if_ended)
        # it was cut where the picture was being refreshed bit by bit
        if first.pts is not None and first.pts > index.pts[0]:
            index = msgspec.structs.replace(index, pts=[p for p in index.pts if p >= first.pts])
        frame_time = index.duration / len(index.pts)
        missing = (index.pts[-1] - (last.pts if last.pts is not None else index.pts[-1])) * float(index.time_base)
        if missing > 1.5 * frame_time:
            raise unreadable(f"the last {missing:.1f} s of its {index.duration:.1f} s do not decode", where)
        context = stream.codec_context
        measured = 1 / frame_time
        nominal = float(stream.average_rate or 0)
        return VideoFile(
            frames=len(index.pts),
            fps=nominal if abs(nominal / measured - 1) < 0.01 else measured,
            duration=index.duration,
            variable_rate=index.variable_rate,
            width=first.width,
            height=first.height,
            rotation=ROTATIONS[orientation(first)],
            codec=context.codec.canonical_name,
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            hdr=context.color_trc in HDR_TRANSFERS,
            untagged_hd=is_untagged_hd(first),
        )


def _decode_first(path: Path, raise_if_ended: Callable[[], None]) -> av.VideoFrame:
    """The first frame that is shown. Raises ClipError."""
    with open_video(path) as (container, stream):
        try:
            raise_if_ended()
            first = next(decoded(container, stream), None)
        except av.error.FFmpegError as e:
            raise _undecodable(path, "first", f" ({reason_of(e)})") from None
    if first is None or first.is_corrupt:
        raise _undecodable(path, "first")
    return first


def _decode_last(path: Path, keyframes: list[int], raise_if_ended: Callable[[], None]) -> av.VideoFrame:
    """The last frame, decoded from the last keyframe; where that fails, from the one before, and then from the start.
    Raises ClipError.

    In MPEG streams a seek is a guess that may lead too far, and with intra refresh no frame after a seek is whole for a
    while.
    """
    reason = ""
    for start in (*keyframes[:-3:-1], None):
        with open_video(path) as (container, stream):
            last = None
            try:
                if start is not None:
                    container.seek(start, stream=stream, backward=True)
                for frame in decoded(container, stream):
                    raise_if_ended()
                    # AVI with B-frames: not always rising
                    if last is None or frame.pts is None or last.pts is None or frame.pts >= last.pts:
                        last = frame
            except av.error.FFmpegError as e:
                reason = f" ({reason_of(e)})"
                continue
        if last is not None and not last.is_corrupt:
            return last
    raise _undecodable(path, "last", reason)


def _undecodable(path: Path, which: str, reason: str = "") -> ClipError:
    return unreadable(f"its {which} frame does not decode{reason}", str(path))


def probe_image(path: Path) -> tuple[int, int, int, str]:
    """(width, height, rotation, format) of a still image that decodes whole; width and height are those for viewing.
    Raises ClipError.

    The rotation is the one of its EXIF orientation, counterclockwise; PIL.ImageOps.exif_transpose applies it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    where = str(path)
    head, _ = read_head(path)
    if animation(head):
        refuse_foreign(head, where)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            rotation = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}.get(image.getexif().get(0x0112, 1), 0)
            return *upright.size, rotation, (image.format or "").lower()
    except UnidentifiedImageError:
        refuse_foreign(head, where, image=True)
        fix = "Save it again as png or jpg, or take it out of the folder"
        raise unreadable("is not an image that can be read", where, fix) from None
    except Image.DecompressionBombError:
        raise unreadable("is too large an image", where, "Scale it down: a few megapixels are plenty") from None
    except (OSError, SyntaxError, ValueError, EOFError) as e:  # Pillow's decoders raise all of these for damaged files
        what = (
            "is truncated" if "truncated" in str(e) else f"is a damaged image ({str(e).lower() or 'no reason given'})"
        )
        raise unreadable(what, where) from None
