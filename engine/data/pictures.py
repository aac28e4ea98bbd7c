"""One decoded frame as the picture of a bucket: upright, in RGB, resized to cover and cropped around the centre.

How a still image is opened is presets.clips.images's; which frame it is, `frame_reader`'s.
"""

from fractions import Fraction
from typing import Any, Literal

import numpy as np
from av import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from engine.data.hdr import tone_mapped
from presets.clips.geometry import Bucket, square_pixels
from presets.clips.video_index import BT2020, HDR_TRANSFERS, UNSPECIFIED, is_untagged_hd
from presets.errors import ClipError

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


def picture_of(
    frame: Any,
    turn: tuple[bool, bool, bool],
    aspect: Fraction,
    bucket: Bucket,
    scaler: VideoReformatter,
    path: str,
    hdr: Literal["plain", "tonemap"],
    *,
    grow: bool = False,
) -> NDArray[np.uint8]:
    """(height, width, 3), uint8. `turn` is the frame's `orientation`, `aspect` its pixel width / pixel height. Raises
    ClipError."""
    swap, flip_x, flip_y = turn
    height, width = (bucket.width, bucket.height) if swap else (bucket.height, bucket.width)
    square_w, square_h = square_pixels(frame.width, frame.height, aspect)
    cover_w, cover_h = cover(square_w, square_h, width, height, path, grow=grow)
    matrix: int | None = Colorspace.ITU709 if is_untagged_hd(frame) else None
    mapped = hdr == "tonemap" and frame.color_trc in HDR_TRANSFERS
    if mapped and frame.colorspace == UNSPECIFIED and not frame.format.is_rgb:
        matrix = BT2020
    seen = _on_white(frame, matrix, scaler)
    rgb: NDArray[Any] = scaler.reformat(
        seen,
        width=cover_w,
        height=cover_h,
        format="rgb48le" if mapped else "rgb24",
        src_colorspace=matrix if seen is frame else None,
        interpolation=SCALING,
        threads=1,
    ).to_ndarray()
    top, left = (cover_h - height) // 2, (cover_w - width) // 2
    picture: NDArray[Any] = rgb[top : top + height, left : left + width]
    if mapped:
        picture = tone_mapped(picture, frame.color_trc)
    if swap:
        picture = picture.transpose(1, 0, 2)
    if flip_x:
        picture = picture[:, ::-1]
    return picture[::-1] if flip_y else picture


def cover(
    width: float, height: float, at_least_w: int, at_least_h: int, path: str, *, grow: bool = False
) -> tuple[int, int]:
    """The size (width, height) to resize a picture to, so that it just covers a bucket at its own shape. Raises
    ClipError when it would have to grow and may not."""
    scale = max(at_least_w / width, at_least_h / height)
    if scale > 1.01 and not grow:  # buckets never exceed their clip, up to rounding
        raise ClipError(
            f"is {width:.0f}x{height:.0f} now, too small for its {at_least_w}x{at_least_h} bucket",
            code="clip-unreadable",
            where=path,
            fix="It changed since the run began: put the old file back, or start again",
        )
    return max(at_least_w, round(width * scale)), max(at_least_h, round(height * scale))


def _on_white(frame: Any, matrix: int | None, scaler: VideoReformatter) -> Any:
    """The frame, with what is transparent in it laid on white before it is resized, as that of an image is."""
    if not frame.format.has_palette and not any(c.is_alpha for c in frame.format.components):
        return frame
    rgba = scaler.reformat(frame, format="rgba", src_colorspace=matrix, interpolation=SCALING, threads=1).to_ndarray()
    alpha = rgba[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return frame
    laid = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return VideoFrame.from_ndarray(laid.astype(np.uint8), format="rgb24")
