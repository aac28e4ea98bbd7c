"""Buckets, frame counts and speeds, as properties over a grid of real sizes."""

import itertools

import pytest

from presets.clips.geometry import (
    Bucket,
    bucket_for,
    is_valid_frame_count,
    nearest_frame_counts,
    uniform_indices,
    uniform_speed,
)

SIDES = [
    16,
    17,
    31,
    32,
    63,
    144,
    176,
    240,
    272,
    333,
    480,
    512,
    600,
    640,
    720,
    831,
    832,
    1000,
    1080,
    1280,
    1920,
    2160,
    3840,
]
RESOLUTIONS = [64, 100, 256, 480, 512, 640, 768, 1024, 1280]


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_buckets_hold_their_promises(resolution):
    for height, width in itertools.product(SIDES, SIDES):
        b = bucket_for(41, height, width, resolution)
        at = (height, width, resolution, b)
        assert b.frames == 41 and b.height % 16 == 0 and b.width % 16 == 0, at
        assert b.height * b.width <= resolution**2, at
        assert 16 <= b.height <= height and 16 <= b.width <= width, at
        assert bucket_for(41, width, height, resolution) == Bucket(41, b.width, b.height) or height == width, at


@pytest.mark.parametrize("resolution", [256, 512, 768, 1024])
def test_buckets_waste_little_of_ordinary_clips(resolution):
    """Sizes people have: at least four fifths of the possible area, at most a tenth cropped away."""
    for height, width in [
        (480, 832),
        (832, 480),
        (720, 1280),
        (1280, 720),
        (1080, 1920),
        (512, 512),
        (1024, 1024),
        (272, 640),
        (600, 800),
        (1440, 1080),
        (704, 1280),
    ]:
        b = bucket_for(1, height, width, resolution)
        possible = min(resolution**2, height * width)
        assert b.height * b.width >= 0.8 * possible, (height, width, b)
        cover = max(b.height / height, b.width / width)
        assert (b.height * b.width) / (height * cover * width * cover) >= 0.9, (height, width, b)


@pytest.mark.parametrize("resolution", [64, 240, 256, 416, 512, 640, 832])
def test_no_bucket_beside_a_bucket_is_as_large_and_crops_less(resolution):
    for height, width in itertools.product((240, 544, 720, 800, 1000, 1080, 2160), (640, 1280, 1920, 2560)):
        b = bucket_for(1, height, width, resolution)
        for h, w in itertools.product((b.height - 16, b.height, b.height + 16), (b.width - 16, b.width, b.width + 16)):
            if 16 <= h <= height and 16 <= w <= width and b.height * b.width <= h * w <= resolution**2:
                kept, theirs = (a * c / max(a / height, c / width) ** 2 for a, c in ((b.height, b.width), (h, w)))
                assert kept >= theirs * (1 - 1e-12), (height, width, b, h, w)


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((720, 1280), 512, (384, 672)),
        ((512, 512), 512, (512, 512)),
        ((64, 64), 512, (64, 64)),
        ((480, 832), 1024, (480, 832)),
        ((544, 1280), 240, (160, 352)),
        ((1080, 2560), 240, (160, 352)),
        ((544, 1280), 512, (336, 768)),
        ((240, 1280), 64, (32, 128)),
    ],
)
def test_known_buckets(size, resolution, expected):
    b = bucket_for(41, *size, resolution)
    assert (b.height, b.width) == expected


def test_latent_and_tokens():
    b = Bucket(41, 512, 512)
    assert b.latent == (11, 64, 64) and b.tokens == 11 * 32 * 32
    assert Bucket(1, 16, 16).latent == (1, 2, 2) and Bucket(1, 16, 16).tokens == 1


@pytest.mark.parametrize("frames", range(1, 200))
def test_frame_counts(frames):
    below, above = nearest_frame_counts(frames)
    assert is_valid_frame_count(below) and is_valid_frame_count(above)
    assert below <= frames <= above and above - below in (0, 4)
    assert is_valid_frame_count(frames) == (below == above) == (frames in range(1, 1000, 4))


def test_no_frame_count_below_one():
    assert nearest_frame_counts(0)[0] == 1 and not is_valid_frame_count(0) and not is_valid_frame_count(-3)


@pytest.mark.parametrize(
    ("available", "frames"), [(1, 1), (41, 41), (82, 41), (121, 41), (500, 81), (41, 5), (9, 9), (10, 41)]
)
def test_uniform_indices_span_the_clip_in_order(available, frames):
    indices = uniform_indices(available, frames)
    assert len(indices) == frames and indices == sorted(indices)
    assert indices[0] == 0 and (frames == 1 or indices[-1] == available - 1)
    if available >= frames:
        assert len(set(indices)) == frames, "a frame comes twice though there are enough"
        gaps = {b - a for a, b in itertools.pairwise(indices)}
        assert max(gaps, default=1) - min(gaps, default=1) <= 1


def test_speed():
    assert uniform_speed(41 / 16, 41) == pytest.approx(1.0)
    assert uniform_speed(5.125, 41) == pytest.approx(2.0)
    assert uniform_speed(60.0, 1) == 1.0
