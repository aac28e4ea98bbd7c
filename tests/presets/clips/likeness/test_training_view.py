"""What training sees of a clip, in words: held against the pixels and frames that the trainer itself takes."""

import numpy as np
import pytest

from engine.data.frames import DecodeRequest, decode
from presets.clips.batches import clip_buckets
from presets.clips.clip_facts import probe_clip
from presets.clips.likeness.small_pictures import END, pictures_at
from presets.clips.likeness.training_view import Crop, crop_of, taken, view_lines
from presets.job.schema import DatasetPanel
from tests.helpers.facts import clip, image
from tests.helpers.videos import number_of, write_clip


def test_words_of_a_wide_clip():
    panel = DatasetPanel(path="c", resolutions=[512], num_frames=41)
    lines = view_lines(clip(frames=120, fps=24, width=1920, height=1080), panel)
    assert lines[0].startswith("1920x1080 -> ") and "cut off" in lines[0]
    assert lines[1] == "41 of 120 frames, evenly over all 5.0 s: 2.0x as fast as life"


def test_words_of_windows_and_images():
    real = DatasetPanel(path="c", sampling="realtime", num_frames=33)
    long = clip(frames=240, fps=24)
    assert view_lines(long, real)[-1] == (
        "33 frames at 16 a second, 2.0 s of 10.0 s, from another place each time: at true speed"
    )
    head = DatasetPanel(path="c", sampling="head", num_frames=33)
    assert "from the beginning" in view_lines(long, head)[-1]
    spread = DatasetPanel(path="c", sampling="realtime", num_frames=33, windows=3)
    assert "from 0.0 s, 4.0 s, 7.9 s" in view_lines(long, spread)[-1]
    assert view_lines(image(), DatasetPanel(path="c"))[-1] == "1 frame: a still image"
    assert view_lines(clip(frames=9, fps=16), DatasetPanel(path="c"))[-1].startswith("41 of 9 frames")
    assert "too small" in view_lines(clip(width=8, height=8), DatasetPanel(path="c"))[0]


def test_crop_is_what_a_bucket_cuts():
    panel = DatasetPanel(path="c", resolutions=[256])
    for size in ((400, 100), (100, 400), (333, 222), (256, 256)):
        c = clip(width=size[0], height=size[1])
        (bucket,) = clip_buckets(c, panel).values()
        crop = crop_of(c, bucket)
        kept = (size[0] * (1 - 2 * crop.sides)) / (size[1] * (1 - 2 * crop.ends))
        assert kept == pytest.approx(bucket.width / bucket.height)
        assert min(crop.sides, crop.ends) == pytest.approx(0)
    assert Crop(0, 0).text == "nothing is cut off"
    assert Crop(0, 0.125).text == "12.5% is cut off top and bottom"


@pytest.mark.parametrize(
    "panel",
    [
        DatasetPanel(path="c", resolutions=[64], num_frames=9),
        DatasetPanel(path="c", resolutions=[64], num_frames=9, sampling="head"),
        DatasetPanel(path="c", resolutions=[64], num_frames=1, sampling="uniform"),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "avi", "webm"])
def test_first_and_last_frame_are_those_of_the_trainer(tmp_path, panel, suffix):
    codec = {"webm": "libvpx-vp9"}.get(suffix, "libx264")
    path = write_clip(tmp_path / f"a.{suffix}", frames=40, fps=16, width=96, height=96, codec=codec)
    facts = probe_clip(path)
    (bucket,) = clip_buckets(facts, panel).values()
    sampling = "realtime" if panel.sampling == "head" else "uniform"
    trained = decode(DecodeRequest(str(path), "video", bucket, sampling, 0.0, flip_x=False, flip_y=False))
    first, last = pictures_at(path, list(taken(facts, panel)), 128)
    assert number_of(first) == number_of(trained[0])
    assert number_of(last) == number_of(trained[-1])


def test_turned_clips_are_upright_and_small(tmp_path):
    path = write_clip(tmp_path / "a.mp4", width=128, height=64, rotation=90)
    (picture,) = pictures_at(path, [END], 64)
    assert picture.shape == (64, 32, 3) and picture.dtype == np.uint8
