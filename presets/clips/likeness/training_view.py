"""What training sees of a clip: the size it is brought to, what of the picture is cut off for it, and which frames are
taken. The pixels themselves are engine.data's."""

from msgspec import Struct

from presets.clips.batches import clip_buckets, frames_of, window_starts
from presets.clips.clip_facts import ClipFacts
from presets.clips.geometry import WAN_FPS, Bucket, square_pixels, uniform_speed
from presets.clips.likeness.small_pictures import END
from presets.job.schema import DatasetPanel

LITTLE = 0.0005  # of a side: less is rounding, and not worth a word


class Crop(Struct, frozen=True):
    """Which shares of a picture lie outside of what trains, on each of two sides: 0.05 is 5% left and 5% right."""

    sides: float  # left, and as much right
    ends: float  # top, and as much below

    @property
    def text(self) -> str:
        """`nothing is cut off`, `6.7% is cut off left and right`"""
        if self.sides >= LITTLE:
            return f"{100 * self.sides:.1f}% is cut off left and right"
        if self.ends >= LITTLE:
            return f"{100 * self.ends:.1f}% is cut off top and bottom"
        return "nothing is cut off"


def crop_of(clip: ClipFacts, bucket: Bucket) -> Crop:
    """Resized to cover the bucket and cropped around the centre, as training does."""
    width, height = square_pixels(clip.width, clip.height, clip.pixel_aspect)
    scale = max(bucket.width / width, bucket.height / height)
    return Crop((1 - bucket.width / (width * scale)) / 2, (1 - bucket.height / (height * scale)) / 2)


def taken(clip: ClipFacts, panel: DatasetPanel) -> tuple[float, float]:
    """(first, last): when the frames are on show that training takes first and last, in seconds of the clip. Where the
    window is drawn anew at each visit, those of the one in the middle."""
    if clip.kind == "image":
        return 0.0, 0.0
    frames = frames_of(clip, panel)
    if panel.sampling == "uniform":
        return 0.0, END if frames > 1 else 0.0
    window = (frames - 1) / WAN_FPS
    start = window_starts(clip, panel)[0]
    first = (0.5 if start is None else start) * max(0.0, clip.duration - window)
    return first, first + window


def view_lines(clip: ClipFacts, panel: DatasetPanel) -> list[str]:
    """In a few lines: each size with what is cut off for it, then which frames are taken."""
    lines = []
    for bucket in clip_buckets(clip, panel).values():
        lines.append(f"{clip.width}x{clip.height} -> {bucket.width}x{bucket.height}: {crop_of(clip, bucket).text}")
    if not lines:
        lines.append(f"{clip.width}x{clip.height}: too small for one patch of the model")
    return [*lines, frames_line(clip, panel)]


def frames_line(clip: ClipFacts, panel: DatasetPanel) -> str:
    """`41 of 120 frames, evenly over all 5.0 s: 1.9x as fast as life`"""
    if clip.kind == "image":
        return "1 frame: a still image"
    frames = frames_of(clip, panel)
    if panel.sampling == "uniform":
        speed = uniform_speed(clip.duration, frames)
        pace = "at true speed" if 0.95 <= speed < 1.05 else f"{speed:.1f}x as fast as life"
        repeated = ", some of them twice" if frames > clip.frames else ""
        return f"{frames} of {clip.frames} frames, evenly over all {clip.duration:.1f} s{repeated}: {pace}"
    seconds, starts = (frames - 1) / WAN_FPS, window_starts(clip, panel)
    where = (
        "from another place each time"
        if starts == [None]
        else "from the beginning"
        if starts == [0.0]
        else "from "
        + ", ".join(f"{(start or 0.0) * max(0.0, clip.duration - seconds):.1f} s" for start in starts[:6])
        + (f" and {len(starts) - 6} more places" if len(starts) > 6 else "")
    )
    return (
        f"{frames} frames at {WAN_FPS:.0f} a second, {seconds:.1f} s of {clip.duration:.1f} s, {where}: at true speed"
    )
