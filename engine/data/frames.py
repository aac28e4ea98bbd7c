"""Clips to frames: exact picks, by seeking, at the size of a bucket. Imports no torch: data workers run this.

What is wanted is chosen on the clip's index of presentation times (packets are read for it, nothing is decoded), then
decoded from the nearest keyframe. Where a container gives its frames other times than its packets, the index is made by
decoding instead and frames are counted from the start: slower, and just as exact.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from statistics import median_low
from typing import Any, Literal

import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image, ImageOps

from presets.clips.geometry import WAN_FPS, Bucket, square_pixels, uniform_indices
from presets.clips.video_index import FrameIndex, decoded, is_untagged_hd, open_video, orientation, read_index
from presets.errors import ClipError

Frames = NDArray[np.uint8]  # (frames, height, width, 3), RGB

# Lanczos widens its kernel when it shrinks, so it antialiases (plain FAST_BILINEAR does not). Full chroma and accurate
# rounding bring the result to what converting first and resizing after would give; BITEXACT makes it the same on every
# processor.
SCALING = (
    Interpolation.LANCZOS
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)
SEEK_GAIN = 24  # frames that a seek must save: it empties the decoder's pipeline
TAKE_OUT = "Re-encode it, or take it out of the folder"


class DecodeRequest(Struct, frozen=True):
    """Everything that decides the pixels of one item; small, and sent to the data workers as it is."""

    path: str
    kind: Literal["video", "image"]
    bucket: Bucket
    sampling: Literal["uniform", "realtime"]
    start: float  # 0..1: where the real-time window lies in the clip; uniform sampling has no use for it
    flip_x: bool
    flip_y: bool


def decode(request: DecodeRequest) -> Frames:
    """The frames of one item: uint8, (frames, height, width, 3), RGB, exactly the bucket's size. Raises ClipError."""
    bucket = request.bucket
    out = np.empty((bucket.frames, bucket.height, bucket.width, 3), np.uint8)
    decode_into(request, out)
    return out


def decode_into(request: DecodeRequest, out: Frames, *, threads: int = 1) -> None:
    """`decode` into an array of the bucket's shape. `threads` changes the speed alone. Raises ClipError."""
    bucket = request.bucket
    assert out.shape == (bucket.frames, bucket.height, bucket.width, 3), out.shape
    try:
        if request.kind == "image":
            out[0] = _decode_image(request.path, bucket)
        else:
            _decode_video(request, out, threads)
    except FileNotFoundError:
        raise ClipError(
            "is missing",
            code="clip-unreadable",
            where=request.path,
            fix="Put it back, or take it out of the dataset and start again",
        ) from None
    except (OSError, Image.DecompressionBombError) as e:
        raise ClipError(
            f"cannot be decoded ({str(e).lower() or 'no reason given'})",
            code="clip-unreadable",
            where=request.path,
            fix=TAKE_OUT,
        ) from None
    if request.flip_x:
        out[:] = out[:, :, ::-1].copy()
    if request.flip_y:
        out[:] = out[:, ::-1].copy()


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


def frame_index(path: str) -> FrameIndex:
    """When each frame of a video is shown, remembered until the file changes. Raises ClipError or FileNotFoundError."""
    stat = Path(path).stat()
    return _read_index(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=512)
def _read_index(path: str, _mtime: int, _size: int) -> FrameIndex:
    with open_video(Path(path)) as (container, stream):
        return read_index(container, stream, where=path)


@lru_cache(maxsize=512)
def _counted_index(path: str, _mtime: int, _size: int) -> FrameIndex:
    """The index of a clip whose packets mislead: every frame is decoded. Its keyframes are [], so frames are counted
    from the start."""
    with open_video(Path(path)) as (container, stream):
        times: list[Any] = []
        try:
            for frame in decoded(container, stream):
                times.append(frame.pts)
        except FFmpegError:
            raise _damaged(
                path,
                float((times[-1] - times[0]) * Fraction(stream.time_base or 1)) if times and None not in times else 0.0,
            ) from None
        rate = stream.average_rate or stream.guessed_rate or Fraction(WAN_FPS)
        assert stream.time_base
        tick = Fraction(stream.time_base)
    if not times:
        raise ClipError("holds no frame that can be decoded", code="clip-unreadable", where=path, fix=TAKE_OUT)
    if None in times or any(b <= a for a, b in pairwise(times)):
        return FrameIndex(list(range(len(times))), 1 / rate, 1, [])
    return FrameIndex(times, tick, median_low(b - a for a, b in pairwise(times)) if len(times) > 1 else 1, [])


# Video


def _decode_video(request: DecodeRequest, out: Frames, threads: int) -> None:
    index = frame_index(request.path)
    if any(b <= a for a, b in pairwise(index.pts)) or not _fill(request, index, out, threads):
        stat = Path(request.path).stat()
        index = _counted_index(request.path, stat.st_mtime_ns, stat.st_size)
        if not _fill(request, index, out, threads):
            raise ClipError("has frames that do not decode", code="clip-unreadable", where=request.path, fix=TAKE_OUT)


def _fill(request: DecodeRequest, index: FrameIndex, out: Frames, threads: int) -> bool:
    """Decode the wanted frames into `out`. False when the decoder did not deliver one of them."""
    try:
        places = choose(index, len(out), request.sampling, request.start)
    except ValueError as e:
        raise ClipError(
            str(e),
            code="clip-too-short",
            where=request.path,
            fix="Take fewer frames, or take the clip out of the folder",
        ) from None
    scaler = VideoReformatter()
    slot = 0
    with open_video(Path(request.path)) as (container, stream):
        stream.codec_context.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        aspect = stream.sample_aspect_ratio or Fraction(1)
        try:
            for place, frame in _visit(container, stream, index, sorted(set(places))):
                if frame.is_corrupt:
                    raise _damaged(request.path, index.times[place])
                picture = _picture(frame, aspect, request.bucket, scaler, request.path)
                while slot < len(places) and places[slot] == place:
                    out[slot] = picture
                    slot += 1
        except FFmpegError:
            return False  # counting from the start will show where
    return slot == len(places)


def _damaged(path: str, seconds: float) -> ClipError:
    return ClipError(
        f"is damaged at {seconds:.1f} s: a frame there does not decode",
        code="clip-unreadable",
        where=path,
        fix=TAKE_OUT,
    )


def _visit(container: Any, stream: Any, index: FrameIndex, wanted: list[int]) -> Iterator[tuple[int, Any]]:
    """(place, frame) of each wanted place, in order; ends early when one does not come by seeking. Counting from the
    start also gives each damaged frame on the way: what follows it shows it."""
    if not index.keyframes:
        places = set(wanted)
        counted = islice(enumerate(decoded(container, stream)), wanted[-1] + 1)
        yield from ((i, frame) for i, frame in counted if i in places or frame.is_corrupt)
        return
    at, frames = 0, decoded(container, stream)  # at: the place that is decoded next
    for place in wanted:
        key = bisect_right(index.keyframes, index.pts[place]) - 1
        key_place = bisect_right(index.pts, index.keyframes[max(0, key)]) - 1
        if key_place - at >= SEEK_GAIN:
            container.seek(index.pts[key_place], stream=stream, backward=True)
            frames, at = decoded(container, stream), key_place
        frame = _forward_to(frames, index.pts[place])
        if frame is None:
            return
        at = place + 1
        yield place, frame


def _forward_to(frames: Iterable[Any], pts: int) -> Any:
    """The frame with this time, or None when the decoder passes it by or marks one on the way as damaged."""
    for frame in frames:
        if frame.pts is None or frame.pts > pts or frame.is_corrupt:
            return None
        if frame.pts == pts:
            return frame
    return None


def _picture(frame: Any, aspect: Fraction, bucket: Bucket, scaler: Any, path: str) -> NDArray[np.uint8]:
    """One decoded frame as RGB at the bucket's size: turned upright, resized to cover, cropped around the centre."""
    swap, flip_x, flip_y = orientation(frame)
    height, width = (bucket.width, bucket.height) if swap else (bucket.height, bucket.width)
    square_w, square_h = square_pixels(frame.width, frame.height, aspect)
    cover_w, cover_h = cover(square_w, square_h, width, height, path)
    rgb = scaler.reformat(
        frame,
        width=cover_w,
        height=cover_h,
        format="rgb24",
        src_colorspace=Colorspace.ITU709 if is_untagged_hd(frame) else None,
        interpolation=SCALING,
        threads=1,
    )
    top, left = (cover_h - height) // 2, (cover_w - width) // 2
    picture: NDArray[np.uint8] = rgb.to_ndarray()[top : top + height, left : left + width]
    if swap:
        picture = picture.transpose(1, 0, 2)
    if flip_x:
        picture = picture[:, ::-1]
    return picture[::-1] if flip_y else picture


def cover(width: float, height: float, at_least_w: int, at_least_h: int, path: str) -> tuple[int, int]:
    """The size (width, height) to resize a picture to, so that it just covers a bucket at its own shape. Raises
    ClipError when it would have to grow."""
    scale = max(at_least_w / width, at_least_h / height)
    if scale > 1.01:  # buckets never exceed their clip, up to rounding
        raise ClipError(
            f"is {width:.0f}x{height:.0f} now, too small for its {at_least_w}x{at_least_h} bucket",
            code="clip-unreadable",
            where=path,
            fix="It changed since the run began: put the old file back, or start again",
        )
    return max(at_least_w, round(width * scale)), max(at_least_h, round(height * scale))


# Images


def _decode_image(path: str, bucket: Bucket) -> NDArray[np.uint8]:
    """A still picture at the bucket's size: upright, transparency on white, 16 bits brought to 8. Raises OSError or
    ClipError."""
    assert bucket.frames == 1, bucket
    with Image.open(path) as opened:
        image = _rgb(ImageOps.exif_transpose(opened))
    cover(image.width, image.height, bucket.width, bucket.height, path)
    scale = max(bucket.width / image.width, bucket.height / image.height)
    left, top = (image.width - bucket.width / scale) / 2, (image.height - bucket.height / scale) / 2
    box = (max(0.0, left), max(0.0, top), min(image.width, image.width - left), min(image.height, image.height - top))
    return np.asarray(image.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which convert() would cut off at 255
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray((wide.clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
