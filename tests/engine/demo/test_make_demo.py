"""The demo is a job that passes every check, with clips whose objects really go round; what it learns is measured."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.frames import DecodeRequest, decode
from engine.demo.learned import learned
from engine.demo.make_demo import FRAMES, MANIFEST, SCENES, SIDE, UNSEEN, VERSION, film, prepare_demo
from engine.preview.video_files import write_video
from engine.toy_base import DATA
from engine.toy_base.films import COLOURS, locate
from engine.toy_base.motion import RADIUS
from presets.clips.geometry import Bucket
from presets.errors import UserError
from presets.facts.gather import gather
from presets.job.toml_file import load_job, save_job, with_value
from presets.rules.check import check_job
from presets.runs.events import Event

pytestmark = pytest.mark.process  # takes seconds


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    shutil.copytree(prepared, folder)
    assert prepare_demo(folder) == folder / "job.toml"
    return folder


def stamps(folder: Path) -> dict[str, int]:
    return {
        p.relative_to(folder).as_posix(): p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.name != MANIFEST
    }


def frames_of(clip: Path, count: int = FRAMES) -> np.ndarray:
    return decode(DecodeRequest(str(clip), "video", Bucket(count, SIDE, SIDE), "uniform", 0.0, False, False))


def test_the_job_passes_all_rules_without_a_complaint(demo: Path) -> None:
    job = load_job(demo / "job.toml")
    facts = gather(job, demo, out=demo / "runs")
    complaints = [f for f in check_job(job, facts) if f.severity != "advice"]
    assert complaints == []
    assert len(facts.datasets[0].clips) == 12
    assert all(c.caption.endswith(" orbits, still camera") for c in facts.datasets[0].clips)
    assert (job.job.kind, job.training.steps, job.save.every, job.sample.every, job.sample.first) == (
        "motion",
        40,
        20,
        20,
        True,
    )
    assert all((demo / p.ctrl_img).exists() for p in job.sample.prompts)


def test_the_base_is_the_toy_base(demo: Path) -> None:
    theirs = {p.relative_to(DATA): p.read_bytes() for p in DATA.rglob("*") if p.is_file()}
    assert {p.relative_to(demo / "base"): p.read_bytes() for p in (demo / "base").rglob("*") if p.is_file()} == theirs


def test_each_object_goes_half_round_the_same_way(demo: Path) -> None:
    for scene in SCENES:
        frames = frames_of(demo / "clips" / f"{scene.name}.mp4")
        pictures = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        [places], _ = locate(pictures, torch.tensor([list(COLOURS).index(scene.colour)]))
        way = places - places[0]
        assert torch.allclose(way[-1], torch.tensor([0.0, 2 * RADIUS]), atol=0.06), scene.name
        assert way[FRAMES // 2, 0] > 0.8 * RADIUS, scene.name  # on the right half


def test_control_images_are_of_colours_that_no_clip_has(demo: Path) -> None:
    assert not {scene.colour for scene in UNSEEN} & {scene.colour for scene in SCENES}
    firsts = [frames_of(demo / "clips" / f"{scene.name}.mp4", 1)[0].astype(float) for scene in SCENES]
    firsts += [np.asarray(Image.open(p)).astype(float) for p in sorted((demo / "clips_control").glob("*.png"))]
    assert len(firsts) == 14
    for i, a in enumerate(firsts):
        assert all(np.abs(a - b).mean() > 8 for b in firsts[:i])


def test_a_second_run_keeps_what_is_whole_and_mends_the_rest(demo: Path) -> None:
    before = stamps(demo)
    prepare_demo(demo)
    assert stamps(demo) == before
    broken = [demo / "clips" / "red_ball.mp4", demo / "base" / "vae" / "config.json"]
    good = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(path.read_bytes()[:500])
    (demo / "clips" / "red_ring.txt").unlink()
    prepare_demo(demo)
    assert [path.read_bytes() for path in broken] == good
    assert {name for name, stamp in stamps(demo).items() if before[name] != stamp} == {
        "clips/red_ball.mp4",
        "clips/red_ring.txt",
        "base/vae/config.json",
    }


def test_a_demo_of_an_older_version_makes_room(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "red_vase.mp4").write_bytes(b"old")
    (tmp_path / "job.toml").write_text("old")
    manifest = {"version": VERSION - 1, "sizes": {"clips/red_vase.mp4": 3, "clips/gone.mp4": 5}}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    prepare_demo(tmp_path)
    assert (tmp_path / "job-older.toml").read_text() == "old" and load_job(tmp_path / "job.toml").sample.first
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 12 and not (tmp_path / "clips" / "red_vase.mp4").exists()


def test_edits_of_the_job_file_are_kept(tmp_path: Path, demo: Path) -> None:
    path = demo / "job.toml"
    text = path.read_text()
    try:
        save_job(with_value(load_job(path), "target.rank", 8), path)
        prepare_demo(demo)
        assert load_job(path).target.rank == 8
        prepare_demo(demo, steps=6)
        job = load_job(path)
        assert (job.target.rank, job.training.steps, job.save.every, job.multistage.switch_every) == (8, 6, 3, 2)
    finally:
        path.write_text(text)


@pytest.mark.parametrize("place", ["clips", "base"])
def test_foreign_files_are_not_taken_over(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir()
    (tmp_path / place / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"not the demo's \(holiday\.mp4\)"):
        prepare_demo(tmp_path)
    assert [p.name for p in (tmp_path / place).iterdir()] == ["holiday.mp4"]


def test_a_second_run_of_the_command_imports_no_torch(demo: Path) -> None:
    code = (
        f"import sys; from engine.demo.make_demo import main; assert main([{str(demo)!r}]) == 0; print('torch' in"
        " sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [str(demo / "job.toml"), "False"]


# --- what was learned


def preview(run: Path, step: int, number: int, pictures: np.ndarray) -> str:
    name = f"samples/step_{step:09d}/{number:02d}.mp4"
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    write_video(run / name, pictures, 16)
    data = {"step": step, "path": name}
    event = Event(seq=step + number + 1, time=0.0, run="demo", attempt=1, kind="sample", data=data)
    return msgspec.json.encode(event).decode()


@pytest.fixture
def run(tmp_path: Path, demo: Path) -> Path:
    """A run whose objects stand before and go round after."""
    shutil.copy(demo / "job.toml", tmp_path)
    lines = []
    for number, scene in enumerate(UNSEEN):
        lines += [
            preview(tmp_path, 0, number, np.repeat(film(scene)[:1], FRAMES, axis=0)),
            preview(tmp_path, 40, number, film(scene)),
        ]
    (tmp_path / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return tmp_path


def test_what_was_learned_is_told_by_the_first_and_the_last_previews(run: Path) -> None:
    found = learned(run)
    assert found is not None and found.previews == 2
    assert 0.15 < found.before < 0.25 and found.after < 0.02
    said = subprocess.run([sys.executable, "-m", "engine.demo.learned", str(run)], capture_output=True, check=True)
    assert json.loads(said.stdout) == {"before": found.before, "after": found.after, "previews": 2}


def test_other_previews_than_the_demo_s_own_are_not_measured(run: Path) -> None:
    job = load_job(run / "job.toml")
    for prompt in job.sample.prompts:
        prompt.ctrl_img = "mine.png"
    save_job(job, run / "job.toml")
    assert learned(run) is None
