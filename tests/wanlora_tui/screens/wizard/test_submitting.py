"""From the wizard to the daemon: the draft goes only when the job was accepted."""

import asyncio
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from daemon.errors import NotRunning
from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from presets.job.toml_file import load_job
from tests.helpers.interface.harness import answers, end_daemon, environment, running_daemon
from tests.helpers.interface.harness import until as until_outside
from tests.helpers.interface.wizard_pilot import make_base, make_clips, screen_of, screen_text, until
from tests.helpers.terminal import Terminal
from tests.wanlora_tui.test_app import interface
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screens.wizard import WizardScreen
from wanlora_tui.screens.wizard.review import ReviewPane
from wanlora_tui.screens.wizard.submitting import SubmittingScreen

pytestmark = pytest.mark.usefixtures("drawn_when_looked_at")
NAME = "orbit_v1"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that wanlora is started in; its name needs quotes in a shell."""
    folder = tmp_path / "my clips"
    make_clips(folder / "orbit", 1, frames=9)
    make_base(folder / "base")
    monkeypatch.chdir(folder)
    return folder


def draft_file(folder: Path) -> Path:
    return folder / "seen" / "draft.json"


def left_at_review(folder: Path, work: Path) -> Path:
    """A draft that can be launched as it is."""
    values: dict[str, Any] = {
        "model.path": str(work / "base"),
        "job.name": NAME,
        "datasets[0].num_frames": 9,
        "datasets[0].resolutions": [64],
        "sample.width": 64,
        "sample.height": 64,
    }
    DraftStore(draft_file(folder)).save(
        Draft(step="review", kind="motion", folders=[str(work / "orbit")], values=values)
    )
    return draft_file(folder)


def says(pilot: Pilot[None], *words: str) -> bool:
    text = " ".join(screen_text(pilot.app).replace("│", " ").split())
    return all(w in text for w in words)


async def at_review(pilot: Pilot[None]) -> ReviewPane:
    """Open the wizard, go on with the draft, and take every fix there is."""
    await pilot.press("n")
    await until(pilot, lambda: says(pilot, "Continue the half-filled job"), "the offer")
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(screen_of(pilot).pane, ReviewPane), "the review")
    pane = screen_of(pilot).pane
    assert isinstance(pane, ReviewPane)
    await until(pilot, lambda: not pane.checking and not pane.watching, "the findings")
    await pilot.press("F")
    await until(pilot, lambda: not pane.checking and not pane.watching, "the second check")
    assert not [f for f in pane.findings if f.severity == "error"], pane.findings
    return pane


async def jobs(folder: Path) -> list[JobRecord]:
    async with Client(folder) as client:
        return await client.jobs()


async def refused(pilot: Pilot[None], pane: ReviewPane) -> str:
    """Wait until the wizard says in place why; gives what it says."""
    await until(pilot, lambda: pane.refusal and pilot.app.screen is screen_of(pilot), "the reason")
    await until(pilot, lambda: not pane.checking and says(pilot, "NOT LAUNCHED"), "the reason in place")
    return "\n".join(pane.refusal)


async def accepted(pilot: Pilot[None], folder: Path) -> None:
    await until(pilot, lambda: isinstance(pilot.app.screen, DashboardScreen), "the dashboard")
    assert [j.name for j in await jobs(folder)] == [NAME]
    assert not draft_file(folder).exists()


async def test_a_launch_starts_the_daemon_that_was_stopped(folder: Path, work: Path) -> None:
    left_at_review(folder, work)
    async with interface(folder) as (_, pilot):
        await until(pilot, lambda: says(pilot, "daemon alive"), "the daemon")
        end_daemon(folder)
        until_outside(lambda: not answers(folder), "the end of the daemon")
        await at_review(pilot)
        await pilot.press("f8")
        await until(
            pilot, lambda: isinstance(pilot.app.screen, SubmittingScreen | DashboardScreen), "what is waited for"
        )
        await accepted(pilot, folder)


async def test_a_refused_launch_keeps_wizard_draft_and_a_command_that_works(folder: Path, work: Path) -> None:
    draft = left_at_review(folder, work)
    with running_daemon(folder):
        async with interface(folder) as (_, pilot):
            pane = await at_review(pilot)
            run = work / "runs" / NAME
            run.mkdir(parents=True)
            (run / "job.toml").write_text("[job]\n")  # since the check
            await pilot.press("f8")
            reason = await refused(pilot, pane)
            assert "already holds a run" in reason
            assert any(f.field == "job.name" and f.severity == "error" for f in pane.findings), (
                "and it is a finding with a fix by now"
            )
            kept = DraftStore(draft).load()
            assert kept is not None and (kept.launched, kept.values["job.name"]) == ("", NAME)
            assert load_job(work / f"{NAME}.toml").job.name == NAME
            shutil.rmtree(run)
            pane.bring_up_to_date()
            await until(pilot, lambda: not pane.checking and not pane.watching, "the third check")
            assert pane.refusal == [] and not says(pilot, "NOT LAUNCHED")
            assert says(pilot, "written by the last launch")
            await pilot.press("f8")  # asks nothing about the file: it is the wizard's own
            await accepted(pilot, folder)
        command = shlex.split(reason.partition("from a shell: ")[2].splitlines()[0])
        assert command == ["wanlora", "submit", str(work / f"{NAME}.toml"), "--dir", str(folder)]


async def test_the_command_it_names_hands_in_the_job(folder: Path, work: Path) -> None:
    left_at_review(folder, work)
    with running_daemon(folder):
        async with interface(folder) as (app, pilot):
            pane = await at_review(pilot)
            (work / "runs").mkdir()
            (work / "runs" / NAME).mkdir()
            (work / "runs" / NAME / "job.toml").write_text("[job]\n")
            await pilot.press("f8")
            command = (await refused(pilot, pane)).partition("from a shell: wanlora ")[2].splitlines()[0]
            shutil.rmtree(work / "runs")
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "wanlora_tui.cli", *shlex.split(command)],
                cwd="/",
                env=environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert [j.name for j in await jobs(folder)] == [NAME]
            assert isinstance(app.screen, WizardScreen) and draft_file(folder).exists()


async def test_a_daemon_that_hangs_is_told_and_the_next_launch_works(folder: Path, work: Path) -> None:
    draft = left_at_review(folder, work)
    with running_daemon(folder):
        async with interface(folder) as (_, pilot):
            pane = await at_review(pilot)
            async with Client(folder) as client:
                pid = (await client.hello()).pid
            os.kill(pid, signal.SIGSTOP)
            try:
                await pilot.press("f8")
                await refused(pilot, pane)
                assert DraftStore(draft).load() is not None
            finally:
                os.kill(pid, signal.SIGCONT)
            await pilot.press("f8")
            await accepted(pilot, folder)


async def test_waiting_for_the_daemon_can_be_stopped(folder: Path, work: Path) -> None:
    draft = left_at_review(folder, work)
    with running_daemon(folder):
        async with interface(folder) as (_, pilot):
            pane = await at_review(pilot)
            async with Client(folder) as client:
                pid = (await client.hello()).pid
            os.kill(pid, signal.SIGSTOP)
            try:
                await pilot.press("f8")
                await until(pilot, lambda: isinstance(pilot.app.screen, SubmittingScreen), "what is waited for")
                await pilot.press("escape")
                assert "You have stopped waiting" in await refused(pilot, pane)
                kept = DraftStore(draft).load()
                assert kept is not None and kept.launched == str(work / f"{NAME}.toml")
            finally:
                os.kill(pid, signal.SIGCONT)
            await pilot.press("f8")
            await accepted(pilot, folder)


async def test_a_job_that_was_taken_unseen_is_found_and_not_launched_twice(folder: Path, work: Path) -> None:
    """No answer came, yet the daemon had taken the job."""
    left_at_review(folder, work)
    with running_daemon(folder):
        async with interface(folder) as (app, pilot):
            pane = await at_review(pilot)

            async def no_answer(path: Path, **_: object) -> JobRecord:
                await submit(path)
                raise NotRunning("the daemon has not answered for 20 s")

            submit, app.client.submit = app.client.submit, no_answer  # type: ignore[method-assign]
            await pilot.press("f8")
            assert "may still take the job" in await refused(pilot, pane)
            app.client.submit = submit  # type: ignore[method-assign]
            # its trainer has begun the run already, and that is told
            if [f for f in pane.findings if f.severity == "error"]:
                assert {f.code for f in pane.findings if f.severity == "error"} <= {"run-folder-same-job"}
            else:
                await pilot.press("f8")
                await accepted(pilot, folder)
            assert len(await jobs(folder)) == 1


@contextmanager
def files_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_told_in_place(folder: Path, work: Path) -> None:
    draft = left_at_review(folder, work)
    with running_daemon(folder):
        async with interface(folder) as (_, pilot):
            pane = await at_review(pilot)
            before = draft.read_bytes()
            with files_of(100):
                await pilot.press("f8")
                reason = await refused(pilot, pane)
            assert str(work / f"{NAME}.toml") in reason and "cannot be written" in reason and "--out" not in reason
            assert draft.read_bytes() == before and not (work / f"{NAME}.toml").exists() and await jobs(folder) == []
            await pilot.press("f8")
            await accepted(pilot, folder)


def test_killed_between_the_acceptance_and_the_end_of_the_draft(folder: Path, work: Path) -> None:
    draft = left_at_review(folder, work)
    code = f"""
import os, signal
from pathlib import Path
from textual_image.widget import HalfcellImage
import wanlora_tui.app as app
from wanlora_tui.feeds.submitter import Submitter
class Dies(Submitter):
    async def submit(self, path, **more):
        await super().submit(path, **more)
        os.kill(os.getpid(), signal.SIGKILL)
app.Submitter = Dies
folder = Path({str(folder)!r})
app.WanloraApp(folder, folder / "seen", image=HalfcellImage).run()
"""
    with running_daemon(folder):
        terminal = Terminal([sys.executable, "-c", code], size=(80, 24), cwd=work, env=environment())
        try:
            terminal.wait("No jobs yet")
            terminal.press("n")
            terminal.wait("Continue the half-filled job")
            terminal.press("enter")
            terminal.wait(lambda text: "ADVICE" in text or "WARNINGS" in text or "ERRORS" in text, "the findings")
            terminal.press("F")

            def launched() -> bool:  # a key that comes while the job is still being checked says so and does nothing
                if "… checking" not in terminal.text and terminal.process.isalive():
                    terminal.press("f8")
                return not terminal.process.isalive()

            until_outside(launched, "the end")
            assert terminal.process.signalstatus == signal.SIGKILL
        finally:
            terminal.close()
        kept = DraftStore(draft).load()
        assert kept is not None and kept.launched == str(work / f"{NAME}.toml")

        async def again() -> None:
            async with interface(folder) as (_, pilot):
                await until(pilot, lambda: says(pilot, NAME), "the job")
                await pilot.press("n")
                await until(
                    pilot,
                    lambda: says(pilot, "Continue the half-filled job", "It was launched already: job 1"),
                    "the offer",
                )
            assert len(await jobs(folder)) == 1

        asyncio.run(again())
