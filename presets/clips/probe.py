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
from presets.clips.file_head import animation, read_head, refuse_foreign, refuse_incomplete, unreadable
from presets.clips.video_index import (
    HDR_TRANSFERS,
    FrameIndex,
    decoded,
    is_untagged_hd,
    open_video,
    orientation,
    read_index,
    reason_of,
)
from presets.errors import ClipError
from presets.look import never_ends

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
        first, last = _decode_first(path, raise_if_ended), _decode_last(path, index, raise_if_ended)
        # it was cut where the picture was being refreshed bit by bit
        if first.pts is not None and first.pts > index.pts[0]:
            index = msgspec.structs.replace(index, pts=[p for p in index.pts if p >= first.pts])
        frame_time = index.duration / len(index.pts)
        if (missing := _missing(index, last)) > 1.5 * frame_time:
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
            interlaced=first.interlaced_frame,
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


def _decode_last(path: Path, index: FrameIndex, raise_if_ended: Callable[[], None]) -> av.VideoFrame:
    """The last frame, decoded from the last keyframe; where that leads not so far, from the one before, and then from
    the start. Raises ClipError.

    In MPEG streams a seek is a guess that may lead too far, and with intra refresh no frame after a seek is whole for a
    while.
    """
    if index.joined:
        return _last_of_all(path, len(index.pts), raise_if_ended)
    reason, best = "", None
    for start in (*index.keyframes[:-3:-1], None):
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
            best = last if best is None else min(best, last, key=lambda frame: _missing(index, frame))
            if _missing(index, best) <= 1.5 * index.duration / len(index.pts):
                break
    if best is None:
        raise _undecodable(path, "last", reason)
    return best


def _last_of_all(path: Path, frames: int, raise_if_ended: Callable[[], None]) -> av.VideoFrame:
    """The last of so many frames, counted because their times do not tell. Raises ClipError."""
    last: av.VideoFrame | None = None
    count = 0
    with open_video(path) as (container, stream):
        try:
            for frame in decoded(container, stream):
                raise_if_ended()
                last, count = frame, count + 1
        except av.error.FFmpegError as e:
            raise _undecodable(path, "last", f" ({reason_of(e)})") from None
    if last is None or last.is_corrupt:
        raise _undecodable(path, "last")
    if count < frames - 1:
        raise unreadable(f"only {count} of its {frames} frames decode", str(path))
    return last


def _missing(index: FrameIndex, last: av.VideoFrame) -> float:
    """Seconds from a frame to the last one of the index."""
    return 0.0 if last.pts is None or index.joined else float((index.pts[-1] - last.pts) * index.time_base)


def _undecodable(path: Path, which: str, reason: str = "") -> ClipError:
    return unreadable(f"its {which} frame does not decode{reason}", str(path))


def probe_image(path: Path) -> ClipFacts:
    """Facts of a still image that decodes whole, as a clip of one frame; its rotation is that of its EXIF orientation.
    Raises ClipError."""
    from PIL import Image, UnidentifiedImageError

    from presets.clips.images import DAMAGED, MODES, opened, orientation_of, profile_problem

    where = str(path)
    head, size = read_head(path)
    if animation(head):
        refuse_foreign(head, where)
    try:
        with opened(path) as image:
            width, height = image.size
            orientation, unused = orientation_of(image)
            if (pictures := getattr(image, "n_frames", 1)) > 1 and image.format in ("TIFF", "AVIF"):
                what = f"holds {pictures} pictures, and a clip of one frame is one"
                raise unreadable(what, where, "Save the one to train on as png or jpg")
            if image.mode not in MODES:
                what = f"holds pixels that have no plain colours (mode {image.mode})"
                raise unreadable(what, where, "Save it again as png or jpg, or take it out of the folder")
            image.draft(None, (1, 1))  # a JPEG is read whole for it, and takes a 64th of the memory
            image.load()
            return ClipFacts(
                path=where,
                kind="image",
                frames=1,
                fps=0.0,
                duration=0.0,
                width=height if orientation > 4 else width,
                height=width if orientation > 4 else height,
                rotation={3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}.get(orientation, 0),
                codec=(image.format or "").lower(),
                variable_rate=False,
                size_bytes=size,
                unused=" and ".join(filter(None, (unused, profile_problem(image)))),
            )
    except ClipError:
        raise
    except UnidentifiedImageError:
        refuse_foreign(head, where, image=True)
        fix = "Save it again as png or jpg, or take it out of the folder"
        raise unreadable("is not an image that can be read", where, fix) from None
    except Image.DecompressionBombError:
        raise unreadable("is too large an image", where, "Scale it down: a few megapixels are plenty") from None
    except RuntimeError:  # of JPEG XL's decoder, whose message is about how it was built
        raise unreadable("is a damaged image, or cut off before its end", where) from None
    except DAMAGED as e:
        what = (
            "is truncated" if "truncated" in str(e) else f"is a damaged image ({str(e).lower() or 'no reason given'})"
        )
        raise unreadable(what, where) from None
