"""What an epoch consists of: the buckets that a clip is trained in, and how items of one kind make batches.

Used by the trainer and by the planner, which has to predict the same shapes. Which item is in which batch is
engine.data.sampler's.
"""

from collections import Counter
from typing import NamedTuple

from presets.clips.clip_facts import ClipFacts
from presets.clips.geometry import SIDE_MULTIPLE, Bucket, bucket_for, square_pixels
from presets.job.schema import DatasetPanel


class Group(NamedTuple):
    """What all items of a batch share."""

    regularization: bool
    bucket: Bucket
    weight: float  # strength of the LoRA


def clip_buckets(clip: ClipFacts, panel: DatasetPanel) -> dict[int, Bucket]:
    """Resolution -> bucket of a clip, each bucket once, under the first resolution that gives it. An image has one
    frame, whatever its dataset asks for. None for a clip too small for a patch, which a rule refuses."""
    width, height = (int(side) for side in square_pixels(clip.width, clip.height, clip.pixel_aspect))
    if min(width, height) < SIDE_MULTIPLE:
        return {}
    frames = 1 if clip.kind == "image" else panel.num_frames
    out: dict[int, Bucket] = {}
    for resolution in panel.resolutions:
        bucket = bucket_for(frames, height, width, resolution)
        if bucket not in out.values():
            out[resolution] = bucket
    return out


def batches_of(items: Counter[Group], batch_size: int) -> Counter[tuple[Group, int]]:
    """(group, size) -> batches of an epoch, from the number of items of each group: all are full but the last of each
    group, which may be short."""
    out: Counter[tuple[Group, int]] = Counter()
    for group, count in items.items():
        full, rest = divmod(count, batch_size)
        out[group, batch_size] += full
        out[group, rest] += rest > 0
    return +out
