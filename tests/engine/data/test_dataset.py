"""Items: one per clip, resolution and repeat, in the right bucket, with the right caption."""

from pathlib import Path

import msgspec
import pytest

from engine.data.dataset import build_dataset, dataset_fingerprint
from engine.data.frames import decode
from engine.data.sampler import BatchSampler
from presets.clips.clip_facts import ClipFacts, DatasetFacts, scan_dataset
from presets.clips.geometry import Bucket
from presets.errors import UserError
from presets.job.schema import DatasetPanel, Job, JobPanel
from tests.helpers.videos import number_of, write_clip, write_image


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


def test_a_setting_that_came_later_leaves_the_fingerprint_as_it_was(tmp_path: Path) -> None:
    (plain,) = build([clip("a.mp4")])
    (mapped,) = build([clip("a.mp4")], hdr="tonemap")
    (tmp_path / "a.mp4").write_bytes(b"any")
    before, now = (
        dataset_fingerprint([msgspec.structs.replace(item, path=str(tmp_path / "a.mp4"))]) for item in (plain, mapped)
    )
    assert before != now


def test_windows_are_items_and_one_window_has_the_id_it_always_had() -> None:
    def ids(**panel):
        return [i.id for i in build([clip("long.mp4"), clip("short.mp4", frames=30, duration=30 / 24)], **panel)]

    plain = ["0/long.mp4@512", "0/short.mp4@512"]
    assert ids(num_frames=17) == ids(num_frames=17, sampling="head") == plain
    many = [f"0/long.mp4@512w{i}" for i in (1, 2, 3)]
    assert ids(num_frames=17, sampling="realtime", windows=3) == [*many, plain[1]]
    items = build([clip("long.mp4")], num_frames=17, sampling="head", windows=3)
    assert [(i.sampling, i.window_start is None) for i in items] == [("realtime", False)] * 3
    assert items[0].window_start == 0
    [item] = build([clip("long.mp4")], sampling="realtime")
    assert item.window_start is None, "drawn for each visit"


def test_the_fingerprint_of_older_jobs_stays(tmp_path: Path) -> None:
    """The digest is one that was computed before there were windows: a run that was begun then goes on."""
    clips = []
    for name, kind in (("a.mp4", "video"), ("b/c.mov", "video"), ("d.png", "image")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 10)
        moves = {} if kind == "image" else {"caption": f"{name} moves"}
        clips.append(clip(str(tmp_path / name).removeprefix("/data/"), kind=kind, **moves))
    clips = [msgspec.structs.replace(c, path=c.path.removeprefix("/data/")) for c in clips]
    panels = [
        DatasetPanel(path="data", resolutions=[256, 512], repeats=2, default_caption="still"),
        DatasetPanel(path="data", sampling="realtime", num_frames=33, flip_x=True),
    ]
    found = DatasetFacts(path=str(tmp_path), clips=clips, problems=[])
    items = build_dataset(Job(job=JobPanel(name="x"), datasets=panels), Path("/"), [found, found])
    digest = "5b1092fa74faafde4e9a0930c13a45d1d00adee83d01617798b17bcdb95fd615"
    assert dataset_fingerprint(items) == {"visits": 15, "sha256": digest}
    panels[1].windows = 2
    items = build_dataset(Job(job=JobPanel(name="x"), datasets=panels), Path("/"), [found, found])
    assert dataset_fingerprint(items)["visits"] == 17


def test_head_and_windows_decode_the_frames_they_name(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", frames=60, fps=16)

    def picked(**panel) -> list[list[int]]:
        panels = [DatasetPanel(path=str(tmp_path), resolutions=[64], num_frames=9, **panel)]
        job = Job(job=JobPanel(name="x"), datasets=panels)
        items = build_dataset(job, tmp_path, [scan_dataset(panels[0], 0, tmp_path)])
        order = BatchSampler(items, 1, 3)
        draws = sorted((order.batch(i)[0] for i in range(len(items))), key=lambda d: d.item.id)
        again = sorted((order.batch(i)[0] for i in range(len(items), 2 * len(items))), key=lambda d: d.item.id)
        assert [d.request for d in draws] == [d.request for d in again], "the same at each visit"
        return [[number_of(frame) for frame in decode(d.request)] for d in draws]

    assert picked(sampling="head") == [list(range(9))]
    assert picked(sampling="head", windows=3) == [list(range(at, at + 9)) for at in (0, 9, 18)]
    assert [at[0] for at in picked(sampling="realtime", windows=3)] == [0, 25, 51]


def test_short_clips_are_decoded_whole(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", frames=30)
    write_clip(tmp_path / "b.mp4", frames=50)
    panel = DatasetPanel(path=str(tmp_path), resolutions=[64], short_clips="shorten")
    job = Job(job=JobPanel(name="x"), datasets=[panel])
    items = build_dataset(job, tmp_path, [scan_dataset(panel, 0, tmp_path)])
    assert [i.bucket.frames for i in items] == [29, 41]
    draws = [d for i in range(2) for d in BatchSampler(items, 2, 1).batch(i)]
    assert {decode(d.request).shape[0] for d in draws} == {29, 41}, "in batches of their own"


def test_no_clip_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="no clip"):
        build([])


def test_an_image_has_no_last_frame_of_its_own() -> None:
    items = build([clip("a.mp4"), clip("b.png", kind="image", frames=1)], last_frame=0.5)
    assert [i.last_frame for i in items] == [0.5, 0.0]
    assert [i.last_frame for i in build([clip("a.mp4")], num_frames=1, last_frame=0.5)] == [0.0]


def test_the_fingerprint_of_an_old_job_is_what_it_was(tmp_path: Path) -> None:
    """A run that was begun before these fields came resumes as what it was; with them it is another dataset."""
    (tmp_path / "a.mp4").write_bytes(bytes(100))
    before = {
        "visits": 1,
        "sha256": "0be61684c7edfa527e72ac623580e1a32ef0a20b56287c816a99251fe04bb71e",
    }
    found = [msgspec.structs.replace(clip("a.mp4", caption="a b"), path=str(tmp_path / "a.mp4"))]

    def fingerprint(**panel) -> dict:
        job = Job(job=JobPanel(name="x"), datasets=[DatasetPanel(path=str(tmp_path), **panel)])
        return dataset_fingerprint(
            build_dataset(job, tmp_path, [DatasetFacts(path=str(tmp_path), clips=found, problems=[])])
        )

    assert fingerprint() == before
    assert fingerprint(mask="off", mask_min=0.5) == before
    assert fingerprint(last_frame=0.5)["sha256"] != before["sha256"]
    (tmp_path / "a.mask.png").write_bytes(bytes(10))
    mask = clip("a.mask.png", kind="image", frames=1)
    found = [msgspec.structs.replace(found[0], mask=msgspec.structs.replace(mask, path=str(tmp_path / "a.mask.png")))]
    masked = fingerprint()
    assert masked != before and fingerprint(mask="off") == before
    assert fingerprint(mask_min=0.2) != masked
    (tmp_path / "a.mask.png").write_bytes(bytes(11))
    assert fingerprint() not in (before, masked)
