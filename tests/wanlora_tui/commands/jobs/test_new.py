"""`wanlora new --from`: a copy of a job, and what differs; and `--json`."""

import json
from pathlib import Path

import pytest

from presets.job.schema import ValidationPanel
from presets.job.toml_file import get_value, job_to_dict, load_job, save_job, with_value
from tests.helpers.interface.harness import write_job
from tests.helpers.interface.wizard_pilot import make_clips
from wanlora_tui.cli import main
from wanlora_tui.commands.job import with_settings
from wanlora_tui.draft.from_job import job_at


def test_the_same_with_half_the_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, target = write_job(tmp_path, steps=77), tmp_path / "elsewhere/half.toml"
    target.parent.mkdir()
    assert main(["new", "--from", str(source), "--set", "training.lr=5e-5", "--out", str(target)]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(target)
    assert "training.lr = 5e-05, was 0.0001" in err and 'job.name = "orbit_v2"' in err and "training.steps" not in err
    made = load_job(target)
    assert (made.training.lr, made.training.steps, made.job.name) == (5e-5, 77, "orbit_v2")
    assert made.datasets[0].path == str(tmp_path / "clips")  # it lies elsewhere, its clips do not


def test_of_a_finished_run_whose_job_file_is_gone(tmp_path: Path):
    run, target = tmp_path / "runs/orbit_v1", tmp_path / "b.toml"
    run.mkdir(parents=True)
    save_job(with_value(job_at(write_job(tmp_path)), "target.rank", 8), run / "job.toml")
    (tmp_path / "orbit_v1.toml").unlink()
    assert main(["new", "--from", str(run), "--name", "again", "--out", str(target)]) == 0
    assert (load_job(target).job.name, load_job(target).target.rank) == ("again", 8)


def test_a_folder_of_held_out_clips_takes_the_place_of_a_fraction(tmp_path: Path):
    job = with_value(job_at(write_job(tmp_path)), "validation.fraction", 0.2)
    assert with_settings(job, ["validation.path=held"]).validation == ValidationPanel(path="held")
    both = with_settings(job, ["validation.path=held", "validation.fraction=0.3"])
    assert (both.validation.path, both.validation.fraction) == ("held", 0.3), "which a rule refuses"
    assert with_settings(job, ["validation.every=9"]).validation.fraction == 0.2


def test_what_a_copy_cannot_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, target = write_job(tmp_path), tmp_path / "b.toml"
    assert main(["new", "--from", str(source), "--clips", str(tmp_path), "--out", str(target)]) == 1
    assert main(["new", "--kind", "style", "--out", str(target)]) == 2
    assert main(["new", "--from", str(tmp_path / "gone.toml"), "--out", str(target)]) == 1
    assert not target.exists() and "gone.toml" in capsys.readouterr().err


def test_for_programs_it_says_all_about_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_clips(tmp_path / "clips", 2)
    (tmp_path / "clips/orphan.txt").write_text("a caption of nothing")
    target = tmp_path / "job.toml"
    line = ["new", "--kind", "motion", "--clips", str(tmp_path / "clips"), "--set", "target.rank=8"]
    assert main([*line, "--json", "--out", str(target)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert list(made) == ["path", "job", "reasons", "changes", "findings", "forecast"]
    assert made["path"] == str(target) and made["job"] == job_to_dict(load_job(target)) and made["changes"] == []
    values = {r["field"]: r["value"] for r in made["reasons"]}
    assert values and all(get_value(load_job(target), field) == value for field, value in values.items())
    assert "target.rank" not in values, "a reason for another value than the user's"
    assert all(set(f) == {"code", "severity", "field", "message", "fix"} for f in made["findings"])
    assert any("orphan.txt" in f["message"] for f in made["findings"])
    assert made["forecast"]["disk_bytes"] > 0 and len(made["forecast"]["clips"]) == 1

    copy = ["new", "--from", str(target), "--set", "training.lr=5e-5", "--json", "--out", str(tmp_path / "b.toml")]
    assert main(copy) == 0
    copied = json.loads(capsys.readouterr().out)
    assert list(copied) == list(made) and copied["forecast"] is None
    assert {"field": "training.lr", "old": made["job"]["training"]["lr"], "new": 5e-5} in copied["changes"]
    assert main(copy) == 1 and not capsys.readouterr().out, "a failure is told on stderr alone"


@pytest.mark.parametrize("command", ["new", "check"])
def test_the_price_is_that_of_the_daemon_that_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
):
    """Its folder has settings of its own."""
    make_clips(tmp_path / "clips", 2)
    target = tmp_path / "job.toml"
    new = ["new", "--kind", "motion", "--clips", str(tmp_path / "clips"), "--out", str(target)]
    if command == "check":
        assert main(new) == 0 and "EUR" not in capsys.readouterr().err
    (tmp_path / "d").mkdir()
    (tmp_path / "d/settings.toml").write_text('[cost]\nrate = 2.5\ncurrency = "EUR"\n')
    main(["--dir", str(tmp_path / "d"), *(new if command == "new" else ["check", str(target)])])
    assert " in all · EUR " in " ".join(capsys.readouterr().err.split())
