"""Items: one per clip, resolution and repeat, in the right bucket, with the right caption."""

from pathlib import Path

import pytest

from engine.data.dataset import build_dataset
from presets.clips.clip_facts import ClipFacts, DatasetFacts, scan_dataset
from presets.clips.geometry import Bucket
from presets.errors import UserError
from presets.job.schema import DatasetPanel, Job, JobPanel
from tests.helpers.videos import write_clip, write_image


def clip(path: str, width: int = 1280, height: int = 720, **changes) -> ClipFacts:
    values = {
        "path": f"/data/{path}",
        "kind": "video",
        "frames": 120,
        "fps": 24.0,
        "duration": 5.0,
        "width": width,
        "height": height,
        "rotation": 0,
        "codec": "h264",
        "variable_rate": False,
    }
    return ClipFacts(**(values | changes), has_caption="caption" in changes)


def build(clips: list[ClipFacts], *, trigger: str = "", **panel):
    job = Job(job=JobPanel(name="x", trigger=trigger), datasets=[DatasetPanel(path="data", **panel)])
    return build_dataset(job, Path("/"), [DatasetFacts(path="/data", clips=clips, problems=[])])


def test_ids_are_dataset_path_resolution_and_repeats_are_items() -> None:
    items = build([clip("b/castle.mp4"), clip("tree.mp4")], resolutions=[512, 256], repeats=2)
    assert [(i.id, i.repeat) for i in items] == [
        (name, r)
        for name in ("0/b/castle.mp4@512", "0/b/castle.mp4@256", "0/tree.mp4@512", "0/tree.mp4@256")
        for r in (0, 1)
    ]
    assert len({(i.id, i.repeat) for i in items}) == len(items)


def test_resolutions_with_the_same_bucket_count_once() -> None:
    assert [i.id for i in build([clip("small.mp4", 320, 240)], resolutions=[512, 768])] == ["0/small.mp4@512"]
    assert [i.bucket for i in build([clip("small.mp4", 320, 240)], resolutions=[512, 768])] == [Bucket(41, 240, 320)]


def test_images_are_one_frame_and_datasets_of_one_frame_take_one_of_each_clip() -> None:
    assert [i.bucket.frames for i in build([clip("a.mp4"), clip("b.png", kind="image", frames=1)])] == [41, 1]
    assert [i.bucket.frames for i in build([clip("a.mp4")], num_frames=1)] == [1]


def test_captions_are_resolved() -> None:
    items = build(
        [clip("a.mp4", caption="[trigger], walking"), clip("b.mp4")], trigger="frung", default_caption="a [trigger]"
    )
    assert [i.caption for i in items] == ["frung, walking", "a frung"]


def test_each_dataset_gives_its_own_settings(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / "same.mp4", frames=12)
    write_image(tmp_path / "two" / "still.png")
    panels = [
        DatasetPanel(path="one", num_frames=9, weight=0.5),
        DatasetPanel(path="two", num_frames=5, regularization=True, sampling="realtime"),
    ]
    job = Job(job=JobPanel(name="x"), datasets=panels)
    items = build_dataset(job, tmp_path, [scan_dataset(p, i, tmp_path) for i, p in enumerate(panels)])
    assert [(i.id, i.bucket, i.weight, i.regularization, i.sampling) for i in items] == [
        ("0/same.mp4@512", Bucket(9, 48, 64), 0.5, False, "uniform"),
        ("1/same.mp4@512", Bucket(5, 48, 64), 1.0, True, "realtime"),
        ("1/still.png@512", Bucket(1, 48, 64), 1.0, True, "realtime"),
    ]


def test_no_clip_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="no clip"):
        build([])
