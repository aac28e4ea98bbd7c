"""Real video files for tests, written with PyAV. Nothing here needs the network.

Every frame of `numbered` says its own number in its pixels, so a test can ask which frame a decoder really gave it.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # height x width x 3, RGB
BITS = 8  # numbered frames count to 255

PIXEL_FORMATS = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}
OPTIONS = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
}


def numbered(number: int, width: int, height: int) -> Picture:
    """A soft gradient with a square that walks to the right, and the frame's number as black and white blocks along the
    top."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([60 + 80 * x / width, 60 + 80 * y / height, np.full((height, width), 100.0)], axis=-1)
    side = max(4, height // 4)
    left = (number * 2) % max(1, width - side)
    picture[height // 2 : height // 2 + side, left : left + side] = (230, 60, 40)
    block = width // BITS
    for bit in range(BITS):
        picture[: height // 4, bit * block : (bit + 1) * block] = 255 if number >> bit & 1 else 0
    return picture.astype(np.uint8)


def number_of(picture: Picture) -> int:
    """The number that `numbered` drew into an RGB picture, of whatever size it has by now."""
    height, width = picture.shape[:2]
    block = width / BITS
    return sum(1 << bit for bit in range(BITS) if picture[height // 8, int((bit + 0.5) * block)].mean() > 127)


def write_clip(
    path: Path,
    frames: int = 48,
    fps: float = 24.0,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    rotation: int = 0,
    variable: bool = False,
    gop: int = 12,
    sound: bool = False,
    picture: Callable[[int], Picture] | None = None,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
) -> Path:
    """Write a video; the container follows from the suffix of `path`. Returns `path`.

    `rotation` is the degrees (90, 180, 270) that the picture must be turned counterclockwise for viewing, kept as a
    display matrix as phones do: the file holds pictures of width x height. `variable` doubles every third frame's
    duration. `picture(i)` gives frame i (default: `numbered`). `sound` adds an AAC track of silence. `options` go to
    the encoder, `muxing` to the container.
    """
    draw = picture or (lambda i: numbered(i, width, height))
    rate = Fraction(fps).limit_denominator(1001)
    tick = 1 / rate
    with av.open(str(path), "w", options=muxing or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=OPTIONS.get(codec, {}) | (options or {}))
        stream.width, stream.height = width, height
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        stream.gop_size = gop
        stream.time_base = stream.codec_context.time_base = tick
        if rotation:
            stream.set_display_rotation(rotation)
        voice = out.add_stream("aac", rate=8000, layout="mono") if sound else None
        pts = 0
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(i), format="rgb24")
            frame.pts, frame.time_base = pts, tick
            pts += 2 if variable and i % 3 == 2 else 1
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if voice is not None:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, int(8000 * frames / fps)), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate, silence.pts = 8000, 0
            out.mux(voice.encode(silence))
            out.mux(voice.encode(None))
    return path


def write_image(path: Path, width: int = 64, height: int = 48) -> Path:
    """Write a still image; the format follows from the suffix of `path`. Returns `path`."""
    from PIL import Image

    Image.fromarray(numbered(0, width, height)).save(path)
    return path
