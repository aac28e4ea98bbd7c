"""Links that somebody has planted where a run writes: refused by name, and what they lead to stays as it is."""

import subprocess
import sys
from pathlib import Path

import pytest

from daemon.jobs.control_files import prepare, write_command
from engine.run import run_job
from engine.runfolder.event_log import EventLog
from engine.runfolder.resume import abandon
from presets.files import open_own, require_own
from presets.runs.control import TrainerCommand
from presets.runs.run_folder import FOLDERS, require_no_links
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, write_job

FILES = ("events.jsonl", "job.toml", ".lock", ".reserve")
BELOW = ("checkpoints/step_000000001", "samples/step_000000000")
PLANTED = (*FILES, *FOLDERS, *BELOW)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder of somebody else's, with a file that must not change."""
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    return folder


def plant(run: Path, name: str, target: Path) -> None:
    link = run / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target if name in FOLDERS or "step" in name else target / "precious")


def untouched(target: Path) -> bool:
    return [p.name for p in target.iterdir()] == ["precious"] and (target / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", PLANTED)
def test_the_daemon_and_the_trainer_refuse_the_folder(
    name: str, tmp_path: Path, target: Path, capsys: pytest.CaptureFixture[str]
):
    job = write_job(tmp_path)
    run = tmp_path / "runs" / "orbit_v1"
    plant(run, name, target)
    with pytest.raises(OSError, match="it is a link") as refused:
        prepare(run)
    assert refused.value.filename == str(run / name)
    assert run_job(job, tmp_path / "runs", resume=False) == 1
    said = capsys.readouterr().err
    assert str(run / name) in said and "it is a link" in said
    assert untouched(target) and (run / name).is_symlink()


def test_a_link_that_leads_nowhere_is_one(tmp_path: Path):
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(OSError, match="it is a link"):
        require_no_links(tmp_path)
    for write in (lambda: EventLog(tmp_path, listener=lambda _: None), lambda: open_own(tmp_path / "events.jsonl")):
        with pytest.raises(OSError, match="it is a link"):
            write()
    assert not (tmp_path / "nothing").exists()


def test_writers_do_not_follow_what_was_planted_since(tmp_path: Path, target: Path):
    """Each by itself: between the look and the writing somebody may have been faster."""
    plant(tmp_path, "events.jsonl", target)
    with pytest.raises(OSError, match="it is a link"):
        EventLog(tmp_path, listener=lambda _: None)
    plant(tmp_path, "control", target)
    with pytest.raises(OSError, match="it is a link"):
        write_command(tmp_path, "one", TrainerCommand(command="stop"))
    plant(tmp_path, "logs/attempt_1.log", target)
    with pytest.raises(OSError, match="it is a link"):
        open_own(tmp_path / "logs/attempt_1.log")
    assert untouched(target)


def test_the_reserve_is_never_written_through_a_link(tmp_path: Path, target: Path):
    plant(tmp_path, ".reserve", target)
    log = EventLog(tmp_path, listener=lambda _: None)
    assert untouched(target)
    log.close()
    assert untouched(target)


@pytest.mark.parametrize("name", ["checkpoints", "samples"])
def test_checkpoints_and_samples_may_lie_on_another_disk(name: str, tmp_path: Path):
    run, there = tmp_path / "run", tmp_path / "big-disk"
    there.mkdir()
    plant(run, name, there)
    for _ in range(2):
        require_no_links(run)
        prepare(run)
        (there / "step_000000001").mkdir(exist_ok=True)
    with pytest.raises(OSError, match="which is of another run"):  # as one that came from elsewhere would lead us to
        plant(tmp_path / "other", name, there)
        require_no_links(tmp_path / "other")
    (there / ".wanlora-run").unlink()
    with pytest.raises(OSError, match="say so: printf %s") as refused:
        require_no_links(run)
    subprocess.run(["/bin/sh", "-c", str(refused.value.strerror).partition("say so: ")[2]], check=True)
    require_no_links(run)
    there.chmod(0o777)
    with pytest.raises(OSError, match="chmod go-w"):
        require_no_links(run)
    (there / ".wanlora-run").unlink()
    (there / "step_000000001").rmdir()
    there.rmdir()
    with pytest.raises(OSError, match="which is not there"):
        require_no_links(run)


def test_what_is_abandoned_stays_on_its_disk(tmp_path: Path):
    run, there = tmp_path / "run", tmp_path / "big-disk"
    (there / "step_000000005").mkdir(parents=True)
    plant(run, "checkpoints", there)
    for _ in range(2):  # cut short, it is begun again
        abandon(run, "orbit", 3, run / "abandoned" / "attempt_1")
        assert (there / "abandoned/attempt_1/step_000000005").is_dir() and not (there / "step_000000005").exists()
        assert (run / "abandoned/attempt_1/checkpoints/step_000000005").is_dir()


def test_links_of_the_users_own_are_none_of_ours(tmp_path: Path):
    """To the newest preview, or the run folder itself behind one."""
    real = tmp_path / "big-disk"
    (real / "samples").mkdir(parents=True)
    (real / "newest").symlink_to(real / "samples")
    (tmp_path / "run").symlink_to(real)
    require_no_links(tmp_path / "run")
    require_own(real / "samples")
    prepare(tmp_path / "run")


def test_a_run_without_a_daemon_lets_nobody_write_to_its_folder(tmp_path: Path):
    job = write_job(tmp_path)  # its clips are missing, so it ends at once
    command = [sys.executable, "-m", "engine", str(job)]
    subprocess.run(command, cwd=ROOT, env=environment(), umask=0, check=False, capture_output=True)
    made = [tmp_path / "runs", *(tmp_path / "runs").rglob("*")]
    assert any(path.name == "events.jsonl" for path in made)
    assert [str(path) for path in made if path.stat().st_mode & 0o022] == []
