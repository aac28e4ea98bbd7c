"""The demo is a job that passes every check, with clips that really orbit."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data.frames import DecodeRequest, decode
from engine.demo.make_demo import SCENES, prepare_demo
from presets.clips.geometry import Bucket
from presets.errors import UserError
from presets.facts.gather import gather
from presets.job.toml_file import load_job, save_job, with_value
from presets.rules.check import check_job

pytestmark = pytest.mark.process  # takes seconds


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert prepare_demo(folder) == folder / "job.toml"
    return folder


def stamps(folder: Path) -> dict[str, int]:
    return {
        p.relative_to(folder).as_posix(): p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".demo.json"
    }


def frames_of(clip: Path, count: int = 9) -> np.ndarray:
    return decode(DecodeRequest(str(clip), "video", Bucket(count, 96, 128), "uniform", 0.0, False, False))


def test_the_job_passes_all_rules_without_a_complaint(demo: Path) -> None:
    job = load_job(demo / "job.toml")
    facts = gather(job, demo, out=demo / "runs")
    complaints = [f for f in check_job(job, facts) if f.severity != "advice"]
    assert complaints == []
    assert len(facts.datasets[0].clips) == 12
    assert all(c.caption.startswith("orbit around the ") for c in facts.datasets[0].clips)
    assert (job.job.kind, job.training.steps, job.save.every, job.sample.every, job.multistage.switch_every) == (
        "motion",
        40,
        20,
        20,
        5,
    )
    assert all((demo / p.ctrl_img).exists() for p in job.sample.prompts)


def test_the_camera_goes_round_the_subject_the_same_way_in_every_clip(demo: Path) -> None:
    for scene in SCENES:
        frames = frames_of(demo / "clips" / f"{scene.name}.mp4", 13).astype(float).mean(-1)
        # Stripes on the near side move left: the row through the subject's middle matches itself best a little further
        # left.
        row = frames[:, 50:60, 54:74].mean(1)
        moved = [best_shift(a, b) for a, b in pairwise(row)]
        assert np.mean(moved) < -0.5, scene.name


def best_shift(before: np.ndarray, after: np.ndarray, most: int = 5) -> int:
    def error(shift: int) -> float:
        return float(np.abs(before[most:-most] - after[most + shift : len(after) - most + shift]).mean())

    return min(range(-most, most + 1), key=error)


def test_scenes_differ_and_control_images_are_of_unseen_ones(demo: Path) -> None:
    firsts = [frames_of(demo / "clips" / f"{scene.name}.mp4", 1)[0].astype(float) for scene in SCENES]
    firsts += [np.asarray(Image.open(p)).astype(float) for p in sorted((demo / "clips_control").glob("*.png"))]
    assert len(firsts) == 14
    for i, a in enumerate(firsts):
        assert all(np.abs(a - b).mean() > 8 for b in firsts[:i])


def test_a_second_run_keeps_what_is_whole_and_mends_the_rest(demo: Path) -> None:
    before = stamps(demo)
    prepare_demo(demo)
    assert stamps(demo) == before
    broken = demo / "clips" / "red_ball.mp4"
    good = broken.read_bytes()
    broken.write_bytes(good[:500])
    (demo / "clips" / "red_cone.txt").unlink()
    prepare_demo(demo)
    assert broken.read_bytes() == good
    assert {name for name, stamp in stamps(demo).items() if before[name] != stamp} == {
        "clips/red_ball.mp4",
        "clips/red_cone.txt",
    }


def test_edits_of_the_job_file_are_kept(tmp_path: Path, demo: Path) -> None:
    path = demo / "job.toml"
    text = path.read_text()
    try:
        save_job(with_value(load_job(path), "target.rank", 8), path)
        prepare_demo(demo)
        assert load_job(path).target.rank == 8
        prepare_demo(demo, steps=6)
        job = load_job(path)
        assert (job.target.rank, job.training.steps, job.save.every, job.multistage.switch_every) == (8, 6, 3, 3)
    finally:
        path.write_text(text)


def test_foreign_clips_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"not the demo's \(holiday\.mp4\)"):
        prepare_demo(tmp_path)
    assert [p.name for p in (tmp_path / "clips").iterdir()] == ["holiday.mp4"]


def test_a_second_run_of_the_command_imports_no_torch(demo: Path) -> None:
    code = (
        f"import sys; from engine.demo.make_demo import main; assert main([{str(demo)!r}]) == 0; print('torch' in"
        " sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [str(demo / "job.toml"), "False"]
