"""Sheets of clips: the very pixels that train, labelled with where they come from, and nobody's file lost."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from engine.data.dataset import build_dataset
from engine.data.frames import Taken, decode
from engine.data.sampler import BatchSampler
from engine.preview.clip_sheets import Order, Sheet, about, labels, show
from engine.preview.contact_sheets import GAP
from presets.clips.clip_facts import scan_dataset
from presets.errors import UserError
from presets.job.schema import DatasetPanel, Job, JobPanel
from tests.helpers.videos import number_of, write_clip, write_image


def order(folder: Path, *panels: dict, cuts: dict[str, list[int]] | None = None) -> Order:
    """An order for one dataset each, in the folders `one`, `two`, below `folder`."""
    made = [
        DatasetPanel(path=name, **{"num_frames": 9, "resolutions": [64], "flip_x": True, **panel})
        for name, panel in zip(("one", "two"), panels, strict=False)
    ]
    job = Job(job=JobPanel(name="x"), datasets=made)
    found = [scan_dataset(panel, i, folder) for i, panel in enumerate(made)]
    return Order(job=job, base=str(folder), datasets=found, cuts=cuts or {}, out=str(folder / "out"))


def pictures(sheet: Sheet, frames: np.ndarray) -> bool:
    """Whether a sheet shows these frames, pixel for pixel, row after row, below the words."""
    page = np.asarray(Image.open(sheet.sheet).convert("RGB"))
    count, height, width = frames.shape[:3]
    found = 0
    for y in range(GAP, page.shape[0] - height + 1):
        if found == count:
            break
        if not np.array_equal(page[y : y + height, GAP : GAP + width], frames[found]):
            continue
        x = GAP
        while found < count and np.array_equal(page[y : y + height, x : x + width], frames[found]):
            found, x = found + 1, x + max(128, width) + GAP
    return found == count


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one" / "deep").mkdir(parents=True)
    write_clip(tmp_path / "one" / "a.mp4", frames=60, fps=24, width=96, height=64)
    write_clip(tmp_path / "one" / "deep" / "a.mp4", frames=12, width=64, height=96)
    write_image(tmp_path / "one" / "still.png", 80, 64)
    (tmp_path / "one" / "a.caption").write_text("orbit é", "utf-8")
    return tmp_path


def test_the_sheets_hold_the_pixels_that_train(folder: Path) -> None:
    asked = order(folder, {"sampling": "uniform", "resolutions": [128]})
    head, *sheets = show(asked)
    assert (head.of, head.earlier) == (3, 0)
    items = {item.id: item for item in build_dataset(asked.job, folder, asked.datasets)}
    assert [s.id for s in sheets] == list(items)
    assert [Path(s.sheet).relative_to(folder / "out").as_posix() for s in sheets] == [
        "a.mp4@128.png",
        "deep/a.mp4@128.png",
        "still.png@128.png",
    ]
    visits = BatchSampler(list(items.values()), 1, asked.job.job.seed)
    for sheet in sheets:
        request = visits.visit(items[sheet.id], 0).request
        frames = decode(msgspec.structs.replace(request, flip_x=False))
        assert pictures(sheet, frames) and not pictures(sheet, frames[::-1] if len(frames) > 1 else 255 - frames)
        if request.kind == "video":
            assert sheet.places == [number_of(frame) for frame in frames]
            assert sheet.seconds == pytest.approx([place / 24 for place in sheet.places])


def test_each_window_and_resolution_has_its_sheet(folder: Path) -> None:
    asked = order(folder, {"sampling": "head", "windows": 2, "resolutions": [64, 48]}, {})
    asked.job.datasets[0].short_clips = "shorten"
    (folder / "two").mkdir()
    _, *sheets = show(asked)
    names = [Path(s.sheet).relative_to(folder / "out").as_posix() for s in sheets]
    assert len(set(names)) == len(names) == len(list((folder / "out").rglob("*.png"))) == 8
    assert {"0/a.mp4@64w1.png", "0/a.mp4@64w2.png", "0/a.mp4@48w2.png", "0/still.png@48.png"} <= set(names)
    second = next(s for s in sheets if s.id == "0/a.mp4@64w2")
    assert second.places == [int((9 + i) * 1.5 + 1e-6) for i in range(9)], (
        "the window behind the first, 24 to 16 a second"
    )


def test_where_a_clip_was_cut_is_marked() -> None:
    from presets.clips.video_index import FrameIndex

    index = FrameIndex(list(range(20)), 1, 1, [0])  # type: ignore[arg-type]
    words, alarms = labels(Taken([0, 2, 4, 4, 9], index), [2, 5, 12])
    assert words == ["#0 0.00 s", "CUT #2 2.00 s", "#4 4.00 s", "#4 4.00 s", "CUT #9 9.00 s"]
    assert alarms == [False, True, False, False, True]
    assert labels(Taken([3, 4], index), [2])[1] == [False, False], "before the first frame that is taken"


def test_a_sheet_says_speed_bucket_and_caption(folder: Path) -> None:
    def said(**panel) -> str:
        asked = order(folder, panel)
        item = next(i for i in build_dataset(asked.job, folder, asked.datasets) if i.id == "0/a.mp4@64")
        clip = next(c for c in asked.datasets[0].clips if c.path == item.path)
        return "\n".join(about(asked.job, item, clip, Taken([], None)))

    uniform = said()
    assert "96x64 pixels, trained at" in uniform and "mirrored at random" in uniform
    assert "9 of 60 frames (24 a second, 2.50 s); spread over the clip: plays 4.44x as fast" in uniform
    assert "a.caption: orbit é" in uniform
    assert "0.56 s at true speed, at another place at each visit" in said(sampling="realtime")
    assert said(sampling="head").splitlines()[2].endswith("at true speed")
    assert "41 of" not in said(num_frames=41, sampling="head", short_clips="shorten")
    assert "37 of 60" in said(num_frames=41, sampling="head", short_clips="shorten")


def test_what_somebody_else_wrote_is_not_written_over(folder: Path) -> None:
    asked = order(folder, {})
    list(show(asked))
    first = (folder / "out" / "a.mp4@64.png").read_bytes()
    list(show(asked))  # ours may be
    assert (folder / "out" / "a.mp4@64.png").read_bytes() == first, "the same look, the same bytes"
    asked.job.datasets[0].resolutions = [48]
    write_image(folder / "out" / "still.png@48.png")
    with pytest.raises(UserError, match=r"still\.png@48\.png would be overwritten"):
        list(show(asked))
    assert not (folder / "out" / "a.mp4@48.png").exists(), "nothing is written before"
    (folder / "out" / "still.png@48.png").unlink()
    assert next(show(asked)).earlier == 3


def test_a_clip_that_does_not_decode_is_named_and_the_others_are_shown(folder: Path) -> None:
    asked = order(folder, {"num_frames": 33, "sampling": "realtime"})
    _, *sheets = show(asked)
    [failed] = [s for s in sheets if s.error]
    assert failed.clip.endswith("deep/a.mp4") and "frames in real time" in failed.error and not failed.sheet
    assert len([s for s in sheets if s.sheet]) == 2


@pytest.mark.process
def test_showing_clips_needs_no_torch() -> None:
    code = "import sys, engine.preview.clip_sheets; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
