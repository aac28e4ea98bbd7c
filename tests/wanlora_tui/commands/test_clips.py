"""The real `wanlora clips`: the table, the sheets and the JSON of a folder and of a job."""

import json
from pathlib import Path

import pytest

from presets.clips.clip_facts import scan_dataset
from presets.job.schema import DatasetPanel, Job, JobPanel
from presets.job.toml_file import save_job
from tests.helpers.interface.harness import wanlora
from tests.helpers.videos import write_clip, write_image
from wanlora_tui.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "orbit").mkdir()
    write_clip(tmp_path / "orbit" / "castle.mp4", frames=60, fps=16, width=96, height=64)
    write_clip(tmp_path / "orbit" / "short.mp4", frames=12, fps=16, width=96, height=64)
    (tmp_path / "orbit" / "castle.caption").write_text("orbit 360", "utf-8")
    (tmp_path / "orbit" / "left.ogv").write_bytes(b"x")
    return tmp_path


def job_of(folder: Path, **panel) -> Path:
    dataset = DatasetPanel(path="orbit", default_caption="a clip", resolutions=[64], **panel)
    save_job(Job(job=JobPanel(name="orbit"), datasets=[dataset]), folder / "job.toml")
    return folder / "job.toml"


def cells(stdout: str) -> list[list[str]]:
    table = stdout.partition("\n\n")[0].splitlines()
    return [[cell for cell in line.split("  ") if cell] for line in table]


def test_the_table_of_a_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_of(folder, num_frames=17, sampling="head", windows=2, short_clips="shorten")
    assert main(["clips", str(job)]) == 0
    said = capsys.readouterr()
    rows = [[cell.strip() for cell in row] for row in cells(said.out)]
    assert rows[0] == ["CLIP", "LENGTH", "FRAMES", "FPS", "SIZE", "USED", "SPEED", "TRAINED AT", "CAPTION", "CUTS"]
    assert rows[1][:7] == ["castle.mp4", "3.8 s", "60", "16", "96x64", "2x 17", "1.00x"]
    assert rows[1][8] == "castle.caption"
    assert rows[2][5:7] == ["9", "1.00x"] and rows[2][8] == "default"
    assert "[media-left-aside]" in said.out and "left.ogv" in said.out and "[clips-shortened]" in said.out
    assert "model" not in said.out, "nothing but the clips"


def test_the_mask_of_each_clip_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(folder / "orbit" / "castle.mask.png", 96, 64)
    job = str(job_of(folder, num_frames=9))
    assert main(["clips", job]) == 0
    rows = [[cell.strip() for cell in row] for row in cells(capsys.readouterr().out)]
    assert [row[9] for row in rows] == ["MASK", "castle.mask.png", "-"]
    assert main(["clips", job, "--json"]) == 0
    assert [c["mask"] for c in json.loads(capsys.readouterr().out)["clips"]] == ["castle.mask.png", None]
    assert main(["clips", job, "--set", "datasets.mask=off"]) == 0
    assert "MASK" not in capsys.readouterr().out, "they do not count"


def test_what_is_held_out_is_marked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a fraction in its dataset, of a folder of their own as one more; with what is found about them."""
    for i in range(3):
        write_clip(folder / "orbit" / f"{i}.mp4", frames=20 + i, fps=16, width=96, height=64)
    job = str(job_of(folder, num_frames=9, short_clips="shorten"))
    assert main(["clips", job, "--json"]) == 0
    assert not any(c["held_out"] for c in json.loads(capsys.readouterr().out)["clips"])
    part = ["clips", job, "--set", "validation.fraction=0.4"]
    assert main(part) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in row] for row in cells(out)]
    assert rows[0][-2:] == ["TRAINS", "CUTS"] and [row[0] for row in rows[1:]] == sorted(row[0] for row in rows[1:])
    assert sorted(row[9] for row in rows[1:]) == ["held out"] * 2 + ["yes"] * 3 and "[validation-few-clips]" in out
    (folder / "apart").mkdir()
    write_clip(folder / "apart" / "other.mp4", frames=12, fps=16, width=96, height=64)
    assert main([*part[:2], "--set", "validation.path=apart", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["clips"]
    assert [(c["dataset"], c["clip"]) for c in listed if c["held_out"]] == [(1, "other.mp4")] and len(listed) == 6
    assert not any(c["held_out"] for c in listed[:5])


@pytest.mark.process
def test_what_is_held_out_has_its_sheets_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "apart").mkdir()
    write_clip(folder / "apart" / "other.mp4", frames=12, fps=16, width=96, height=64)
    job = str(job_of(folder, num_frames=9, short_clips="shorten"))
    line = ["clips", job, "--set", "validation.path=apart", "--json", "--show", str(folder / "out")]
    assert main(line) == 0
    listed = json.loads(capsys.readouterr().out)["clips"]
    assert [c["held_out"] for c in listed] == [False, False, True]
    assert all(len(c["sheets"]) == 1 and Path(c["sheets"][0]["sheet"]).is_file() for c in listed)


def test_what_the_job_leaves_out_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clips", str(job_of(folder, num_frames=17, exclude=["short.mp4"]))]) == 0
    said = capsys.readouterr()
    assert len(cells(said.out)) == 2 and "short.mp4" not in said.out
    assert "Left out of training by exclude: " in said.err and "short.mp4" in said.err


def test_a_clip_that_cannot_train_is_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_of(folder, num_frames=17)
    assert main(["clips", str(job)]) == 1
    assert "[clip-too-short]" in capsys.readouterr().out
    assert main(["clips", str(job), "--set", "datasets.short_clips=shorten"]) == 0, "looked at with another value"


def test_a_folder_is_shown_as_a_new_job_would_train_it(folder: Path) -> None:
    out = folder / "sheets"
    line = ("clips", folder / "orbit", "--set", "datasets.short_clips=shorten", "--set", "datasets.num_frames=17")
    said = wanlora(*line, "--set", "datasets.default_caption=x", "--show", out, "--json")
    assert (said.returncode, said.stderr) == (0, f"Wrote 2 sheets into {out}.\n")
    shown = json.loads(said.stdout)
    castle, short = shown["clips"]
    assert (castle["caption"], castle["caption_from"], castle["used"]) == ("orbit 360", "castle.caption", 17)
    assert (short["caption"], short["caption_from"], short["used"]) == ("x", "default", 9)
    [sheet] = castle["sheets"]
    assert Path(sheet["sheet"]).is_file() and len(sheet["places"]) == len(sheet["seconds"]) == 17
    assert sheet["places"][0] == 0 and sheet["seconds"][1] == pytest.approx(sheet["places"][1] / 16)
    assert [f["code"] for f in shown["findings"]].count("media-left-aside") == 1
    again = wanlora("clips", folder / "orbit", "--show", out, "--set", "datasets.resolutions=64")
    assert again.stderr == f"Wrote 2 sheets into {out}. 2 sheets of an earlier look are there too.\n"


def test_sheets_do_not_come_among_the_clips(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clips", str(job_of(folder)), "--show", str(folder / "orbit" / "sheets")]) == 1
    assert "would train as images" in capsys.readouterr().err
    assert not (folder / "orbit" / "sheets").exists()


def test_a_file_of_somebody_else_stays(folder: Path) -> None:
    job = job_of(folder, num_frames=9)
    (folder / "out").mkdir()
    write_image(folder / "out" / "castle.mp4@64.png")
    before = (folder / "out" / "castle.mp4@64.png").read_bytes()
    said = wanlora("clips", job, "--show", folder / "out")
    assert said.returncode == 1 and "would be overwritten" in said.stderr and said.stdout == ""
    assert (folder / "out" / "castle.mp4@64.png").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (["clips", "nowhere"], "no such folder of clips"),
        (["clips", "orbit", "--set", "datasets.windows"], "has no value"),
        (["clips", "job.toml", "--kind", "style"], "--kind goes with a folder"),
        (["clips", "empty"], "that is read, only a.ogv. Convert with ffmpeg"),
    ],
)
def test_what_cannot_be_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: list[str], what: str
) -> None:
    monkeypatch.chdir(folder)
    job_of(folder)
    (folder / "empty").mkdir()
    (folder / "empty" / "a.ogv").write_bytes(b"x")
    assert main(line) == 1
    said = capsys.readouterr()
    assert what in said.err and said.out == ""


def test_a_setting_of_datasets_is_meant_for_each_of_them(folder: Path) -> None:
    from wanlora_tui.commands.job import with_settings

    two = Job(job=JobPanel(name="x"), datasets=[DatasetPanel(path="a"), DatasetPanel(path="b")])
    changed = with_settings(two, ["datasets.num_frames=9", "datasets[1].sampling=head"])
    assert [(d.num_frames, d.sampling) for d in changed.datasets] == [(9, "uniform"), (9, "head")]
    assert scan_dataset(DatasetPanel(path="orbit"), 0, folder).clips[0].caption_file.endswith("castle.caption")


def test_crops_and_twins_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "orbit").mkdir()
    first = write_clip(tmp_path / "orbit" / "a.mp4", frames=20, fps=16, width=96, height=64)
    (tmp_path / "orbit" / "b.mp4").write_bytes(first.read_bytes())
    assert main(["clips", str(job_of(tmp_path, num_frames=17)), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [c["twin"] for c in said["clips"]] == [None, "a.mp4"]
    [bucket] = said["clips"][0]["buckets"]
    assert said["clips"][0]["sees"][0].startswith(f"96x64 -> {bucket['width']}x{bucket['height']}: ")
    [finding] = [f for f in said["findings"] if f["code"] == "clip-copies"]
    assert "b.mp4 (a.mp4)" in finding["message"]
    assert main(["clips", str(job_of(tmp_path, num_frames=17, exclude=["b.mp4"]))]) == 0
    assert "clip-copies" not in capsys.readouterr().out
