"""Gathering facts of real files and checking them; how findings are shown."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from presets.caches.clip_scans import identity_of, keep_cuts
from presets.disk import existing_parent
from presets.facts import gather as gathering
from presets.facts.facts import RunFolder
from presets.facts.gather import gather, read_run_folder
from presets.findings import Finding
from presets.job.resume_check import check_run_folder
from presets.job.toml_file import load_job, parse_job, save_job, with_value
from presets.rules.check import check_job, has_errors, render, summary
from tests.helpers import ROOT
from tests.helpers.facts import GIB, facts, gpu, job, machine, real_model
from tests.helpers.videos import Picture, write_clip

JOB = (
    '[job]\nname = "orbit"\n[[datasets]]\npath = "clips"\nnum_frames = 41\nresolutions = [64]\n[training]\noptimizer ='
    ' "adamw"\n'
)


def one_shot(i: int) -> Picture:
    """A square that moves over a gradient."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 200, 64)
    picture[20:40, i : i + 16] = (40, 220, 90)
    return picture


def two_shots(i: int) -> Picture:
    picture = one_shot(i)
    return picture if i < 24 else 255 - picture[::-1, ::-1] // 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A job folder with two good clips and their captions."""
    base = tmp_path_factory.mktemp("job")
    (base / "clips").mkdir()
    for name, picture in (("a", one_shot), ("b", lambda i: np.ascontiguousarray(one_shot(i)[::-1, ::-1]))):
        write_clip(base / "clips" / f"{name}.mp4", frames=48, fps=16, width=64, height=64, picture=picture)
        (base / "clips" / f"{name}.txt").write_text("orbit 360 around the subject")
    (base / "job.toml").write_text(JOB)
    return base


def codes(findings: list[Finding]) -> list[str]:
    return [f.code for f in findings]


def test_real_clips_through_gather_and_check(folder):
    made = load_job(folder / "job.toml")
    found = gather(made, folder, out=folder / "runs", machine=machine(gpu()))
    assert [Path(c.path).name for c in found.datasets[0].clips] == ["a.mp4", "b.mp4"]
    assert found.cuts == {c.path: [] for c in found.datasets[0].clips}
    assert found.model is not None and not found.model.local
    assert codes(check_job(made, found)) == ["too-few-clips", "model-not-local", "sample-no-prompts"]
    assert not (folder / "runs").exists(), "checking writes nothing"


def test_bad_input_is_found_before_anything_starts(folder, tmp_path):
    base = tmp_path
    (base / "clips").mkdir()
    os.link(folder / "clips" / "a.mp4", base / "clips" / "a.mp4")
    whole = (folder / "clips" / "b.mp4").read_bytes()
    (base / "clips" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (base / "clips" / "text.mp4").write_text("not a video")
    (base / "clips" / "empty.mp4").touch()
    write_clip(base / "clips" / "moving.gif", frames=4, codec="gif")
    write_clip(base / "clips" / "short.mp4", frames=20, fps=16, width=64, height=64)
    (base / "clips" / "a.txt").write_bytes(b"caf\xe9")
    (base / "clips" / "short.txt").write_text("x" * 1_000_000)
    made = parse_job(
        JOB.replace("41", "40").replace("resolutions", "cache_latents = true\nresolutions")
        + '[[sample.prompts]]\nprompt = "orbit"\n'
    )
    found = check_job(made, gather(made, base, out=base / "runs", machine=machine(gpu())))
    told = {Path(f.field).name for f in found if f.severity == "error" and "/" in f.field}
    assert told == {"cut.mp4", "text.mp4", "empty.mp4", "moving.gif", "a.txt", "short.txt"}
    rest = {f.code for f in found if f.severity == "error" and "/" not in f.field}
    assert rest == {"frames-4n-plus-1", "latent-cache-multi-frame", "sample-needs-ctrl-img", "clip-too-short"}


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda p: None, "dataset-missing"),
        (lambda p: p.mkdir(), "dataset-empty"),
        (lambda p: p.touch(), "dataset-missing"),
    ],
)
def test_no_clips_at_all(tmp_path, make, code):
    make(tmp_path / "clips")
    made = parse_job(JOB)
    assert code in codes(check_job(made, gather(made, tmp_path, out=tmp_path, machine=machine(gpu()))))


def test_scene_cuts_are_found_once_per_clip(tmp_path, monkeypatch):
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "c.mp4", frames=48, fps=16, width=64, height=64, picture=two_shots)
    (tmp_path / "clips" / "c.txt").write_text("orbit")
    made = parse_job(JOB)
    found = check_job(made, gather(made, tmp_path, out=tmp_path, machine=machine(gpu())))
    assert [f.message for f in found if f.code == "scene-cuts"] == [
        "scene cuts inside clips teach the LoRA to cut: c.mp4 at frame 24"
    ]

    def decode_again(path: Path) -> list[int]:
        raise AssertionError("decoded twice")

    monkeypatch.setattr(gathering, "find_cuts", decode_again)
    again = gather(made, tmp_path, out=tmp_path, machine=machine(gpu()))
    assert list(again.cuts.values()) == [[24]]
    assert gather(made, tmp_path, out=tmp_path, machine=machine(gpu()), scenes=False).cuts == {}


def test_masks_that_cannot_mask_are_found(tmp_path, monkeypatch):
    """By looking at all of each, once."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for i, name in enumerate(("black", "white", "grey", "torn", "film")):
        write_clip(clips / f"{name}.mp4", frames=48 + i, fps=16, width=64, height=64)
    Image.new("L", (64, 64), 4).save(clips / "black.mask.png")
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(clips / "white.mask.png")
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(clips / "grey.mask.png")
    write_clip(clips / "torn.mask.mp4", frames=51, fps=16, width=64, height=64)
    whole = (clips / "torn.mask.mp4").read_bytes()
    at = len(whole) // 2
    (clips / "torn.mask.mp4").write_bytes(whole[:at] + bytes(1 for _ in range(400)) + whole[at + 400 :])
    write_clip(
        clips / "film.mask.mp4",
        frames=52,
        fps=16,
        width=64,
        height=64,
        picture=lambda i: np.full((64, 64, 3), 255 if i == 40 else 0, np.uint8),
    )
    keep_cuts(identity_of(str(clips / "film.mask.mp4")), [])  # as if it had been looked at as a clip before
    made = parse_job(JOB)

    def check() -> list[Finding]:
        return check_job(made, gather(made, tmp_path, out=tmp_path / "runs", machine=machine(gpu())))

    found = {f.code: f for f in check() if f.code.startswith("mask")}
    assert {code: f.severity for code, f in found.items()} == {
        "mask-all-black": "error",
        "mask-all-white": "advice",
        "mask-unreadable": "error",
    }
    assert "black.mask.png" in found["mask-all-black"].message and "white.mask.png" in found["mask-all-white"].message
    assert found["mask-unreadable"].field == str(clips / "torn.mask.mp4")

    def decode_again(*_: object) -> tuple[int, int]:
        raise AssertionError("decoded twice")

    monkeypatch.setattr(gathering, "shades_of", decode_again)
    assert {f.code for f in check() if f.code.startswith("mask")} == set(found)
    made.datasets[0].mask = "off"
    assert not [f for f in check() if f.code.startswith("mask")]


def test_a_clip_replaced_under_its_name_is_looked_at_again(tmp_path):
    (tmp_path / "clips").mkdir()
    path = tmp_path / "clips" / "c.mp4"
    made = parse_job(JOB)
    write_clip(path, frames=48, fps=16, width=64, height=64, picture=one_shot)
    assert list(gather(made, tmp_path, out=tmp_path, machine=machine(gpu())).cuts.values()) == [[]]
    write_clip(path, frames=48, fps=16, width=64, height=64, picture=two_shots)
    assert list(gather(made, tmp_path, out=tmp_path, machine=machine(gpu())).cuts.values()) == [[24]]


def test_errors_come_first_then_warnings_then_advice():
    made = job("style", datasets=[{"cache_latents": True}], multistage={"switch_every": 5000})
    assert [f.severity for f in check_job(made, facts())] == ["error", "warning", "advice", "advice"]


def test_a_boundary_in_the_job_makes_up_for_a_model_without_one():
    problem = Finding(
        code="model-no-boundary",
        severity="error",
        field="model.boundary",
        message="m",
        fix="f",
        set={"model.boundary": 0.9},
    )
    known = facts(model=real_model(boundary_ratio=None, problems=[problem]))
    assert codes(check_job(job(), known)) == ["model-no-boundary", "sample-no-prompts"]
    assert codes(check_job(job(model={"boundary": 0.9}), known)) == ["sample-no-prompts"]


def test_this_machine_is_read_when_none_is_given(folder):
    made = load_job(folder / "job.toml")
    found = gather(made, folder, out=folder / "not" / "yet")
    assert found.machine is not None and found.machine.ram_total > 0 and found.machine.disk_free > 0
    assert folder.is_relative_to(found.machine.disk_path)


# The run folder


def test_a_new_run_folder_is_fine(folder):
    made = load_job(folder / "job.toml")
    run = read_run_folder(made, folder, folder / "runs")
    assert run == RunFolder(path=str(folder / "runs" / "orbit"), name="orbit")


def hold(folder: Path, out: Path, text: str) -> None:
    (out / "orbit").mkdir(parents=True)
    (out / "orbit" / "job.toml").write_text(text)


@pytest.mark.parametrize("change", ["training.lr", "training.steps", "save.keep", "sample.every", "job.gpus"])
def test_the_same_job_may_go_on_with_other_values(folder, tmp_path, change):
    made = load_job(folder / "job.toml")
    (tmp_path / "orbit").mkdir()
    save_job(made, tmp_path / "orbit" / "job.toml")
    changed = with_value(
        made,
        change,
        {"training.lr": 5e-5, "training.steps": 9, "save.keep": 9, "sample.every": 9, "job.gpus": [1]}[change],
    )
    assert read_run_folder(changed, folder, tmp_path).resume.verdict == "fits"


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("target.rank", 32),
        ("job.seed", 1),
        ("training.lr_scheduler", "cosine"),
        ("datasets[0].path", "other"),
        ("datasets[0].num_frames", 33),
        ("target.alpha", 4.0),
    ],
)
def test_another_job_in_the_run_folder_is_an_error_that_offers_a_free_name(folder, tmp_path, change, value):
    made = load_job(folder / "job.toml")
    (tmp_path / "orbit").mkdir()
    save_job(with_value(made, change, value), tmp_path / "orbit" / "job.toml")
    (tmp_path / "orbit_2").mkdir()
    run = read_run_folder(made, folder, tmp_path)
    assert [c.field for c in run.resume.grounds] == [change] and run.free_name == "orbit_3"
    (finding,) = [f for f in check_job(made, facts(run=run)) if f.code == "run-folder-other-job"]
    assert f"{change} = " in finding.message and " there, " in finding.message and finding.message.endswith(" here)")
    renamed = with_value(made, *next(iter(finding.set.items())))
    assert read_run_folder(renamed, folder, tmp_path).resume.verdict == "fits"


def test_a_relative_and_an_absolute_path_to_the_same_clips_are_the_same(folder, tmp_path):
    made = load_job(folder / "job.toml")
    hold(folder, tmp_path, JOB.replace('"clips"', f'"{folder}/clips"'))
    assert read_run_folder(made, folder, tmp_path).resume.verdict == "fits"


def test_what_a_run_holds_already_is_counted(folder, tmp_path):
    hold(folder, tmp_path, JOB)
    (tmp_path / "orbit" / "checkpoints").mkdir()
    (tmp_path / "orbit" / "checkpoints" / "state").write_bytes(b"x" * 1000)
    assert read_run_folder(load_job(folder / "job.toml"), folder, tmp_path).size == 1000 + len(JOB)


def test_a_damaged_job_in_the_run_folder_is_another_job(folder, tmp_path):
    hold(folder, tmp_path, "[job")
    made = load_job(folder / "job.toml")
    (finding,) = [f for f in check_job(made, gather(made, folder, out=tmp_path)) if f.code == "run-folder-other-job"]
    assert "already holds another job (its job.toml cannot be read: not valid TOML" in finding.message


def test_a_run_is_resumed_with_the_changes_that_were_accepted(folder, tmp_path):
    hold(folder, tmp_path, JOB.replace("41", "33"))
    made = load_job(folder / "job.toml")
    asked = check_run_folder(tmp_path / "orbit", made, folder)
    assert asked.verdict == "ask"
    known = gather(made, folder, out=tmp_path, scenes=False, accepted=asked)
    assert known.run is not None and known.run.resume == asked
    assert "run-folder-other-job" not in codes(check_job(made, known))


@pytest.mark.parametrize(
    ("name", "taken", "free"),
    [
        ("orbit", [], "orbit_2"),
        ("orbit_v1", ["orbit_v2"], "orbit_v3"),
        ("7", [], "7_2"),
        ("x" * 64, [], "x" * 63 + "2"),
        ("a9", [], "a10"),
    ],
)
def test_free_names(tmp_path, name, taken, free):
    for other in taken:
        (tmp_path / other).mkdir()
    assert gathering._free_name(name, tmp_path) == free
    parse_job(JOB.replace("orbit", free))


def test_a_place_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").touch()
    made = load_job(folder / "job.toml")
    for out in (tmp_path / "file" / "runs", Path("/proc/wanlora")):
        run = read_run_folder(made, folder, out)
        assert run.problem
        assert "out-not-writable" in codes(check_job(made, facts(run=run)))


def test_the_nearest_folder_that_exists(tmp_path):
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert existing_parent(tmp_path) == tmp_path


def test_a_full_disk_is_said_in_numbers():
    known = facts(machine=machine(gpu(), disk_gib=1))
    (finding,) = [f for f in check_job(job(), known) if f.code == "disk-too-small"]
    # rank 16: 40 x 16 x (8 x 10240 + 2 x 18944) = 76.7 million parameters an expert; (4 + 8) bytes each, two experts
    assert (
        f"a checkpoint is {2 * 76_677_120 * 12 / GIB:.1f} GiB" in finding.message
        and "1.0 GiB are free at /data" in finding.message
    )


# Showing


def test_findings_as_text():
    found = [
        Finding(
            code="frames-4n-plus-1",
            severity="error",
            field="datasets[0].num_frames",
            message="word " * 40,
            fix="Set it to 41",
        ),
        Finding(code="b", severity="warning", field="x", message="m", fix=""),
    ]
    text = render(found, width=60)
    assert text.startswith("ERROR  datasets[0].num_frames  [frames-4n-plus-1]\n  word word")
    assert "\n  Fix: Set it to 41\n" in text and text.endswith("\n\n1 error, 1 warning")
    assert max(map(len, text.splitlines())) <= 60
    assert has_errors(found) and not has_errors(found[1:])


@pytest.mark.parametrize(
    ("severities", "words"),
    [([], "nothing found"), (["error"] * 2 + ["advice"] * 2, "2 errors, 2 advice"), (["warning"], "1 warning")],
)
def test_the_count(severities, words):
    assert summary([Finding(code="c", severity=s, field="f", message="m", fix="") for s in severities]) == words


def test_checking_imports_no_torch_and_no_textual():
    code = (
        "import sys, presets.rules.check, presets.recipes.recommend; print(sorted({'torch', 'diffusers',"
        " 'transformers', 'peft', 'textual'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        == "[]\n"
    )


def test_a_file_that_cannot_be_a_clip_can_be_left_out(folder, tmp_path):
    """Each by its own fix, one after the other, beside those that are left out already."""
    (tmp_path / "clips" / "below").mkdir(parents=True)
    os.link(folder / "clips" / "a.mp4", tmp_path / "clips" / "a.mp4")
    (tmp_path / "clips" / "a.txt").write_text("orbit")
    (tmp_path / "clips" / "text.mp4").write_text("not a video")
    (tmp_path / "clips" / "below" / "empty.mp4").touch()
    made = parse_job(JOB.replace("num_frames", 'exclude = ["text.mp4"]\nnum_frames'))
    (finding,) = [f for f in check_job(made, gather(made, tmp_path, out=tmp_path)) if f.field.endswith("empty.mp4")]
    assert finding.set == {"datasets[0].exclude": ["text.mp4", "below/empty.mp4"]}
    assert finding.fix.startswith("Leave it out of training, or: ")
    for path, value in finding.set.items():
        made = with_value(made, path, value)
    found = check_job(made, gather(made, tmp_path, out=tmp_path))
    assert not [f for f in found if f.field.startswith("/")] and not [f for f in found if f.code == "exclude-unknown"]
