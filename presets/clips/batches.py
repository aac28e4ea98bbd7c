"""What an epoch consists of: buckets, windows and caption that a clip is trained with, and how items make batches.

Used by the trainer and by the planner, which has to predict the same shapes. Which item is in which batch is
engine.data.sampler's.
"""

from collections import Counter
from typing import NamedTuple

from presets.clips.captions import fill_trigger
from presets.clips.clip_facts import ClipFacts
from presets.clips.geometry import SIDE_MULTIPLE, WAN_FPS, Bucket, bucket_for, nearest_frame_counts, square_pixels
from presets.job.schema import DatasetPanel, Job

FEWEST = 5  # frames that show motion: two latent frames
ROUNDING = 1e-6  # frames: durations are sums of rounded times


class Group(NamedTuple):
    """What all items of a batch share."""

    regularization: bool
    bucket: Bucket
    weight: float  # strength of the LoRA


def frames_that_fit(clip: ClipFacts, panel: DatasetPanel) -> int:
    """The largest 4n+1 that this clip fills without a frame coming twice."""
    available = clip.frames if panel.sampling == "uniform" else int(clip.duration * WAN_FPS + ROUNDING)
    return nearest_frame_counts(max(1, available))[0]


def too_short(clip: ClipFacts, panel: DatasetPanel) -> bool:
    """Whether a video has fewer frames (uniform) or less time (realtime, head) than its dataset asks for."""
    if panel.sampling == "uniform":
        return clip.frames < panel.num_frames
    return clip.duration * WAN_FPS + ROUNDING < panel.num_frames


def frames_of(clip: ClipFacts, panel: DatasetPanel) -> int:
    """How many frames a clip is trained on. An image has one, whatever its dataset asks for."""
    if clip.kind == "image":
        return 1
    if panel.short_clips == "shorten" and too_short(clip, panel):
        return frames_that_fit(clip, panel)
    return panel.num_frames


def window_starts(clip: ClipFacts, panel: DatasetPanel) -> list[float | None]:
    """Where each window of a clip begins, as a share (0..1) of what the clip has to spare; an item each. None: drawn
    anew for each visit, or the clip is taken whole.

    Windows do not overlap. Of several, realtime spreads them evenly from the first frame to the last, head takes one
    after the other.
    """
    if clip.kind == "image" or panel.sampling == "uniform":
        return [None]
    frames, length = frames_of(clip, panel), clip.duration * WAN_FPS  # in frames of 1/16 s
    count = min(panel.windows, max(1, int(length + ROUNDING) // frames))
    if count == 1:
        return [0.0 if panel.sampling == "head" else None]
    apart = frames if panel.sampling == "head" else (length - frames) / (count - 1)
    return [i * apart / (length - (frames - 1)) for i in range(count)]


def clip_buckets(clip: ClipFacts, panel: DatasetPanel) -> dict[int, Bucket]:
    """Resolution -> bucket of a clip, each bucket once, under the first resolution that gives it. None for a clip too
    small for a patch, which a rule refuses."""
    width, height = (int(side) for side in square_pixels(clip.width, clip.height, clip.pixel_aspect))
    if min(width, height) < SIDE_MULTIPLE:
        return {}
    frames = frames_of(clip, panel)
    out: dict[int, Bucket] = {}
    for resolution in panel.resolutions:
        bucket = bucket_for(frames, height, width, resolution)
        if bucket not in out.values():
            out[resolution] = bucket
    return out


def caption_of(job: Job, panel: DatasetPanel, clip: ClipFacts) -> str:
    """What a clip trains with: its own caption or the default one; the trigger alone when the text encoder is to be
    unloaded.

    A regularization clip shows what the trigger is not, so it then trains with the empty caption.
    """
    if job.training.unload_text_encoder:
        return "" if panel.regularization else job.job.trigger
    return fill_trigger(clip.caption_or(panel.default_caption), job.job.trigger)


def batches_of(items: Counter[Group], batch_size: int) -> Counter[tuple[Group, int]]:
    """(group, size) -> batches of an epoch, from the number of items of each group: all are full but the last of each
    group, which may be short."""
    out: Counter[tuple[Group, int]] = Counter()
    for group, count in items.items():
        full, rest = divmod(count, batch_size)
        out[group, batch_size] += full
        out[group, rest] += rest > 0
    return +out
