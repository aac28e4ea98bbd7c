"""Proving that a file can serve as a clip, and what it holds. Only this and `damage` decode in the presets.

A video is trusted only when its container is complete, every picture has a time, and its first and last frames decode:
what fails here would otherwise fail hours into a training. An image decodes whole.
"""

from collections.abc import Callable
from pathlib import Path

import av
import av.container
import msgspec

from presets.clips.clip_facts import ClipFacts
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


def probe_video(path: Path, raise_if_ended: Callable[[], None] = never_ends) -> ClipFacts:
    """Facts of a video whose first and last frames decode. Raises ClipError for everything else.

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
        width, height, pixel_aspect = first.width, first.height, float(stream.sample_aspect_ratio or 1)
        if (rotation := ROTATIONS[orientation(first)]) in (90, 270):
            width, height, pixel_aspect = height, width, 1 / pixel_aspect
        return ClipFacts(
            path=where,
            kind="video",
            frames=len(index.pts),
            fps=nominal if abs(nominal / measured - 1) < 0.01 else measured,
            duration=index.duration,
            width=width,
            height=height,
            rotation=rotation,
            codec=context.codec.canonical_name,
            variable_rate=index.variable_rate,
            size_bytes=size,
            pixel_aspect=pixel_aspect,
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


def probe_image(path: Path) -> ClipFacts:
    """Facts of a still image that decodes whole, as a clip of one frame; its rotation is that of its EXIF orientation,
    as PIL.ImageOps.exif_transpose applies it. Raises ClipError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    where = str(path)
    head, size = read_head(path)
    if animation(head):
        refuse_foreign(head, where)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            rotation = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}.get(image.getexif().get(0x0112, 1), 0)
            return ClipFacts(
                path=where,
                kind="image",
                frames=1,
                fps=0.0,
                duration=0.0,
                width=upright.width,
                height=upright.height,
                rotation=rotation,
                codec=(image.format or "").lower(),
                variable_rate=False,
                size_bytes=size,
            )
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
