"""Buckets of a clip and batches of an epoch, by hand."""

from collections import Counter

from presets.clips.batches import Group, batches_of, clip_buckets
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
