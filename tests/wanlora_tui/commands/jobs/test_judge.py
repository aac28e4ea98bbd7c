"""The real `wanlora judge` and `wanlora report`: of a run folder, and what is said where there is none."""

import json
from pathlib import Path

import pytest

from presets.report.measures import FILE
from tests.helpers.drawn_films import camera, write_run
from wanlora_tui.cli import main

pytestmark = pytest.mark.process  # judge measures in a process of its own


@pytest.fixture
def run(tmp_path: Path) -> Path:
    clips = {"c": (camera(right=4), "a wall")}
    return write_run(tmp_path / "pan", clips, {0: [camera()], 10: [camera(right=3)]}, ["a wall, \x1b[31m"])


def test_the_table_and_the_json_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason="the extra `judge` is not installed")
    assert main(["judge", str(run)]) == 0
    said = capsys.readouterr()
    head, *rows = [line.split() for line in said.out.splitlines()]
    assert head[:5] == ["STEP", "SPEED", "x", "CLIPS", "DIRECTION"] and [row[0] for row in rows] == ["0", "10", "clips"]
    assert 0.65 < float(rows[1][2]) < 0.85 and float(rows[1][3]) > 0.9
    assert "Step 10: previews move 0.7" in said.err and "\x1b" not in said.out + said.err
    assert main(["judge", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((run / FILE).read_text()) and told["previews"][1]["step"] == 10
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert "Step 10: previews move 0.7" in (run / "report.html").read_text()


def test_what_is_in_the_way_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("judge", "report"):
        assert main([command, f"{tmp_path}/nowhere"]) == 1
        assert "there is no such run folder" in capsys.readouterr().err
        assert main([command, str(tmp_path / "clips")]) == 1
        assert "no run lies here" in capsys.readouterr().err
    (run / "report.html").mkdir()
    assert main(["report", str(run)]) == 1
    assert "the page cannot be written" in capsys.readouterr().err


def test_a_run_is_named_by_its_job_file_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.parent / "runs"
    folder.mkdir()
    there = run.rename(folder / "pan")
    job = run.parent / "job.toml"
    job.write_bytes((there / "job.toml").read_bytes())
    assert main(["report", str(job)]) == 0 and capsys.readouterr().out == f"{there / 'report.html'}\n"


def test_a_run_whose_clips_are_gone(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason="the extra `judge` is not installed")
    (run.parent / "clips").rename(run.parent / "moved")
    assert main(["judge", str(run)]) == 1
    said = capfd.readouterr()
    assert "the clips that it trained on are not there" in said.err and said.out == ""
    assert not (run / FILE).exists()
