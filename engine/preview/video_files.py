"""The files of a preview, its video and its poster: written whole or not at all (engine.system.durable_files), checked,
and read back small for the sheets (engine.preview.contact_sheets).
"""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.system.durable_files import atomic_write
from presets.clips.file_head import boxes

Frames = NDArray[np.uint8]  # (T, H, W, 3)
SIDE = 256  # of a small picture, at the most


def write_video(path: Path, frames_THWC: Frames, fps: int) -> None:
    """H.264 in an mp4 that every player opens. Never half there. Raises OSError."""
    with (
        atomic_write(path) as aside,
        av.open(str(aside), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream: Any = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "17", "preset": "medium"})
        stream.height, stream.width, stream.pix_fmt = *frames_THWC.shape[1:3], "yuv420p"
        for frame in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def write_poster(path: Path, frames_THWC: Frames) -> None:
    """The middle frame, as PNG: the first is only the control image again. Raises OSError."""
    with atomic_write(path) as aside:
        Image.fromarray(frames_THWC[len(frames_THWC) // 2]).save(aside, format="PNG")


def small_size(width: int, height: int) -> tuple[int, int]:
    """Sides of a small picture, even as H.264 wants them; nothing grows."""
    scale = min(1.0, SIDE / max(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def read_small(video: Path) -> Frames | None:
    """The small frames of a preview's video; None when it is missing or does not decode."""
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            width, height = small_size(stream.width, stream.height)
            frames = [
                frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
                for frame in container.decode(stream)
            ]
    except (OSError, av.FFmpegError, IndexError):
        return None
    return np.stack(frames) if frames else None


def is_picture(path: Path) -> bool:
    """Whether a PNG is there and every part of it has its checksum."""
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError):  # the latter is Pillow's word for a broken PNG
        return False
    return True


def is_video(path: Path) -> bool:
    """Whether an mp4 is there, with its index, and as long as its boxes say: a power cut may leave less. What the
    frames hold is not looked at."""
    try:
        with path.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            ends = dict(boxes(f, size))
    except OSError:
        return False
    return b"moov" in ends and max(ends.values()) == size
