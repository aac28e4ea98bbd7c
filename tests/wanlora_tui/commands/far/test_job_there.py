"""A job file of this machine submitted on another one: what is sent, what is refused, what goes on after a cut."""

from pathlib import Path

import pytest

from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers.interface.wizard_pilot import make_base
from tests.helpers.jobs import write_job
from tests.helpers.sshd import ALIAS, OtherMachine, needs_sshd
from tests.wanlora_tui.commands.far.test_elsewhere import wanlora

pytestmark = [needs_sshd, pytest.mark.process]


@pytest.fixture
def job(here: Path, box: OtherMachine) -> Path:
    """A job and its clips here; its model lies there, where the job wants it."""
    return write_job(here, make_base(box.home / "base")).rename(here / "demo.toml")


def test_clips_that_lie_only_here(box: OtherMachine, here: Path, job: Path):
    folder = box.home / "wanlora-jobs" / load_job(job).job.name
    said = wanlora(box, here, "submit", "demo.toml", "--host", ALIAS)
    assert said.returncode == 1 and "and not on box" in said.stderr, said.stderr
    assert f"rsync -a --partial --mkpath {here}/clips/ {ALIAS}:wanlora-jobs/" in said.stderr and "--send" in said.stderr
    said = wanlora(box, here, "check", "demo.toml", "--json", "--host", ALIAS)
    assert said.returncode == 1 and "dataset-missing" in said.stdout, said.stderr
    assert not folder.exists(), "a look leaves nothing there"
    # what was begun goes on: half of a clip is there
    clip = min((here / "clips").glob("*.mp4"))
    (folder / "clips").mkdir(parents=True)
    (folder / "clips" / f"{clip.name}.part").write_bytes(clip.read_bytes()[:1000])
    said = wanlora(box, here, "submit", "demo.toml", "--send", "--host", ALIAS)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == load_job(job).job.name and f"Sent demo.toml to {ALIAS}:" in said.stderr
    assert {p.name for p in (folder / "clips").iterdir()} == {p.name for p in (here / "clips").iterdir()}
    assert (folder / "clips" / clip.name).read_bytes() == clip.read_bytes()
    assert (folder / "job.toml").read_bytes() == job.read_bytes()
    # another job of that name
    job.write_text(job.read_text() + "# changed\n")
    said = wanlora(box, here, "submit", "demo.toml", "--host", ALIAS)
    assert said.returncode == 1 and "another job file lies there already" in said.stderr
    assert "# changed" not in (folder / "job.toml").read_text()


def test_paths_from_all_over_are_gathered(box: OtherMachine, here: Path, job: Path):
    whole = load_job(job)
    away = here.parent / "away"
    (here / "clips").rename(away)
    save_job(with_value(whole, "datasets[0].path", "../away"), job)
    job.write_text(f"# mine\n{job.read_text()}")
    said = wanlora(box, here, "submit", "demo.toml", "--send", "--host", ALIAS, "--folder", "~/elsewhere")
    assert said.returncode == 0, said.stderr
    sent = box.home / "elsewhere/job.toml"
    assert load_job(sent).datasets[0].path == "files/away" and sent.read_text().startswith("# mine\n")
    assert {p.name for p in (sent.parent / "files/away").iterdir()} == {p.name for p in away.iterdir()}


def test_a_model_that_lies_only_here_is_left_to_the_user(box: OtherMachine, here: Path):
    job = write_job(here, make_base(here / "base")).rename(here / "demo.toml")
    save_job(with_value(load_job(job), "model.path", "base"), job)
    said = wanlora(box, here, "submit", "demo.toml", "--host", ALIAS)
    assert said.returncode == 1 and "3 paths of it lie here" in said.stderr, said.stderr
    assert "or have all but model.path copied (" in said.stderr
    said = wanlora(box, here, "submit", "demo.toml", "--send", "--host", ALIAS)
    assert said.returncode == 1 and "1 path of it lies here and not on box:\n  model.path = " in said.stderr, (
        said.stderr
    )
    assert "datasets[0]" not in said.stderr and "--send copies no models" in said.stderr
    assert not (box.home / "wanlora-jobs" / load_job(job).job.name).exists()
