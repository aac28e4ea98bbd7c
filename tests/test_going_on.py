"""The trainer, the daemon, the commands and the screens answer the same changes of a job file alike: over one run
folder, in the same words."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.app import App

from daemon.errors import RequestRefused
from daemon.jobs.resume_request import changed_since, require_accepted
from daemon.wire.protocol import JobRecord
from engine.runfolder.resume import find_resume_point
from presets.errors import UserError
from presets.job.toml_file import absolute_paths, load_job, save_job, with_value
from tests.engine.runfolder.test_resume import JOB, Place
from wanlora_tui.commands.resume import agreed_here
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.resume import resume_run

FITS, ASK, IMPOSSIBLE = "fits", "ask", "impossible"
WORDS = {
    ASK: "from here on it would not be the run that was begun",
    IMPOSSIBLE: "its checkpoints do not fit it",
    "unreadable": "nobody can tell what has changed",
}


class Scene:
    """A run folder with its job file, and each of the four who decide, told to accept or not: what they refuse with, ""
    when they do not."""

    def __init__(self, base: Path, *, trained: bool) -> None:
        self.base, self.place, self.file, self.copy = base, Place(base), base / "t.toml", base / "copy.toml"
        save_job(JOB, self.file)
        save_job(absolute_paths(JOB, base), self.copy)
        if trained:
            self.place.save(2)
        self.record = JobRecord(
            id=1, name="t", job_path=str(self.file), out=str(base / "runs"), gpus=[0], state="stopped"
        )
        self.asked: list[str] = []

    def edit(self, **values: object) -> None:
        job = load_job(self.file)
        for path, value in values.items():
            job = with_value(job, path.replace("__", "."), value)
        save_job(job, self.file)

    def trainer(self, accept: bool) -> str:
        return refusal(
            lambda: find_resume_point(self.place.run, load_job(self.file), self.base, from_step=None, accept=accept)
        )

    def daemon(self, accept: bool, copy: bool = True) -> str:
        asked = changed_since(self.record, self.copy if copy else None)[1]
        return refusal(lambda: require_accepted(self.record, asked, asked.digest if accept else None))

    def command(self, accept: bool) -> str:
        return refusal(lambda: agreed_here(load_job(self.file), self.base, self.base / "runs", accepted=accept))

    def screen(self, accept: bool) -> str:
        """Over the daemon's own answers. `accept`: the user says yes to what is asked; otherwise nobody may be queued
        unasked."""
        scene, told = self, []

        class Client:
            async def resume_check(self, job: int):
                return changed_since(scene.record, scene.copy)[1]

            async def resume(self, job: int, from_step: int | None, accepted: str | None):
                try:
                    require_accepted(scene.record, changed_since(scene.record, scene.copy)[1], accepted)
                except UserError as e:
                    raise RequestRefused(f"{e.where}: {e.what}", fix=e.fix) from None  # as the service puts it
                return scene.record

        class Interface(App[None]):
            def notify(self, message: str, **options) -> None:
                if options.get("severity") == "error":
                    told.append(message)

            async def push_screen_wait(self, screen):
                assert isinstance(screen, Confirm)
                scene.asked.append(screen._question)
                return accept

        queued = asyncio.run(resume_run(Interface(), Client(), self.record))  # type: ignore[arg-type]
        return told[0] if told else "" if queued else self.asked[-1]


def refusal(act: Callable[[], object]) -> str:
    try:
        act()
    except UserError as e:
        return str(e)
    return ""


@pytest.mark.parametrize(
    ("trained", "edits", "verdict"),
    [
        (True, {}, FITS),
        (False, {}, FITS),
        (True, {"training__lr": 5e-5, "save__keep": 9, "sample__guidance": 3.0}, FITS),
        (True, {"training__loss": "mae"}, ASK),
        (False, {"training__loss": "mae"}, ASK),
        (True, {"job__seed": 7, "training__lr": 5e-5}, ASK),
        (True, {"target__rank": 8}, IMPOSSIBLE),
        (False, {"target__rank": 8}, ASK),
        (True, {"training__optimizer": "prodigy", "training__loss": "mae"}, IMPOSSIBLE),
        (False, {"training__optimizer": "prodigy", "training__loss": "mae"}, ASK),
    ],
)
def test_all_who_decide_agree(tmp_path: Path, trained: bool, edits: dict[str, object], verdict: str):
    scene = Scene(tmp_path, trained=trained)
    scene.edit(**edits)
    breaking = [
        path.replace("__", ".") for path in edits if path not in ("training__lr", "save__keep", "sample__guidance")
    ]
    grounds = [path for path in breaking if verdict == ASK or path in ("target.rank", "training.optimizer")]
    for who in (scene.command, scene.daemon, scene.screen, scene.trainer):
        refused, accepted = who(False), who(True)
        assert bool(refused) == (verdict != FITS) and bool(accepted) == (verdict == IMPOSSIBLE), (
            who,
            refused,
            accepted,
        )
        for told in filter(None, (refused, accepted)):
            assert WORDS[verdict] in told, who
            # the command has listed them before
            assert all(f"{path}: " in told for path in grounds) or who == scene.command, who
    assert bool(scene.asked) == (verdict == ASK)


@pytest.mark.parametrize("trained", [True, False])
def test_all_agree_on_a_run_whose_own_job_file_cannot_be_read(tmp_path: Path, trained: bool):
    scene = Scene(tmp_path, trained=trained)
    (scene.place.run / "job.toml").write_text("[job")
    for who in (
        scene.command,
        scene.daemon,
        lambda accept: scene.daemon(accept, copy=False),
        scene.screen,
        scene.trainer,
    ):
        assert WORDS["unreadable"] in who(False) and who(True) == ""


def test_a_yes_to_the_command_is_good_for_the_daemon_and_the_trainer(tmp_path: Path):
    scene = Scene(tmp_path, trained=True)
    for edits, torn in (({"training__loss": "mae"}, False), ({}, True)):
        scene.edit(**edits)
        if torn:
            (scene.place.run / "job.toml").write_text("[job")
        digest, _ = agreed_here(load_job(scene.file), scene.base, scene.base / "runs", accepted=True)
        require_accepted(scene.record, changed_since(scene.record, None)[1], digest)
        require_accepted(scene.record, changed_since(scene.record, scene.copy)[1], digest)
        assert scene.trainer(digest is not None) == ""
