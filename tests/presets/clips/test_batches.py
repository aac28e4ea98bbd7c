"""Buckets of a clip and batches of an epoch, by hand."""

from collections import Counter

import pytest

from presets.clips.batches import Group, batches_of, clip_buckets, frames_of, window_starts
from presets.clips.geometry import Bucket
from presets.job.schema import DatasetPanel
from tests.helpers.facts import clip, image


def test_a_bucket_counts_once_under_the_first_resolution_that_gives_it() -> None:
    panel = DatasetPanel(path="clips", resolutions=[768, 512, 256])
    assert clip_buckets(clip(width=320, height=240), panel) == {768: Bucket(41, 240, 320), 256: Bucket(41, 224, 288)}
    assert clip_buckets(image(width=320, height=240), panel)[768] == Bucket(1, 240, 320)


def test_pixels_that_are_not_square_count_as_they_are_seen() -> None:
    panel = DatasetPanel(path="clips", resolutions=[4096])
    assert clip_buckets(clip(width=1440, height=1080, pixel_aspect=4 / 3), panel) == {4096: Bucket(41, 800, 1440)}
    assert clip_buckets(clip(width=64, height=20, pixel_aspect=2.0), panel) == {}, "10 pixels high as it is seen"


def test_the_last_batch_of_each_group_may_be_short() -> None:
    small, half = Group(False, Bucket(9, 64, 64), 1.0), Group(False, Bucket(9, 64, 64), 0.5)
    assert batches_of(Counter({small: 9, half: 8}), 4) == {(small, 4): 2, (small, 1): 1, (half, 4): 2}
    assert batches_of(Counter({small: 3}), 4) == {(small, 3): 1}


@pytest.mark.parametrize(
    ("sampling", "frames", "fps", "used"),
    [
        ("uniform", 41, 24, 41), ("uniform", 40, 24, 37), ("uniform", 4, 24, 1),
        ("realtime", 62, 24, 41), ("realtime", 61, 24, 37), ("head", 24, 24, 13),
    ],
)  # fmt: skip
def test_a_short_clip_falls_to_the_most_frames_it_has_where_that_was_chosen(
    sampling: str, frames: int, fps: int, used: int
) -> None:
    made = clip(frames=frames, fps=fps)
    panel = DatasetPanel(path="clips", sampling=sampling, short_clips="shorten", resolutions=[256])  # type: ignore[arg-type]
    assert frames_of(made, panel) == used
    assert clip_buckets(made, panel) == {256: Bucket(used, 256, 256)}
    assert frames_of(made, DatasetPanel(path="clips", sampling=sampling)) == 41  # type: ignore[arg-type]
    assert frames_of(image(), panel) == 1


def seconds(frames: int, *, num_frames: int = 17, short_clips: str = "refuse", **panel) -> list[float | None]:
    """Where each window of a clip of 16 frames a second begins."""
    panel = DatasetPanel(path="clips", num_frames=num_frames, short_clips=short_clips, **panel)
    made = clip(frames=frames)
    spare = made.duration - (frames_of(made, panel) - 1) / 16
    return [None if start is None else round(start * spare * 16, 6) for start in window_starts(made, panel)]


def test_windows_lie_apart_and_within_the_clip() -> None:
    assert seconds(100, sampling="uniform") == [None]
    assert seconds(100, sampling="realtime") == [None], "drawn anew each time, as ever"
    assert seconds(100, sampling="head") == [0]
    assert seconds(100, sampling="realtime", windows=3) == [0, 41.5, 83], "the last one ends with the clip"
    assert seconds(100, sampling="head", windows=3) == [0, 17, 34]
    assert seconds(51, sampling="realtime", windows=3) == [0, 17, 34], "just room for three"
    assert seconds(50, sampling="realtime", windows=3) == [0, 33]
    assert seconds(30, sampling="realtime", windows=3) == [None]
    assert seconds(30, sampling="head", windows=3) == [0]
    assert seconds(9, sampling="realtime", windows=3, short_clips="shorten") == [None]
    assert seconds(100, num_frames=1, sampling="realtime", windows=3) == [0, 49.5, 99]
    assert window_starts(image(), DatasetPanel(path="clips", sampling="head", windows=3)) == [None]
