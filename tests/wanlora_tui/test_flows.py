"""Long visits on a real pseudo-terminal of 80x24: a list of jobs and a run, from one screen to the next; clips that are
mended in the wizard; a job file that is submitted and opened again."""

import asyncio
import base64
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from daemon.wire.client import Client
from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel, SamplePanel, TrainingPanel
from presets.job.toml_file import save_job
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, running_daemon, short_dir, write_job
from tests.helpers.interface.wizard_pilot import make_base, make_clips
from tests.helpers.recorded_run import write_for_daemon
from tests.helpers.terminal import Terminal
from tests.helpers.waiting import until

pytestmark = pytest.mark.process
WANLORA = [sys.executable, "-m", "wanlora_tui.cli"]
SAVE, NEXT, PALETTE = "\x13", "\x07", "\x10"  # ^S, ^G, ^P


def copied(text: str) -> bytes:
    """What asks a terminal to take a text into its clipboard (OSC 52)."""
    return b"\x1b]52;c;" + base64.b64encode(text.encode())


def in_turn(text: str) -> list[str]:
    """The jobs of the list that wait, the next one first."""
    return [found[1] for row in text.split("\n") if (found := re.search(r"(\w+) +\S+ queued", row))]


def submit(folder: Path, job: Path) -> None:
    async def go() -> None:
        async with Client(folder) as client:
            await client.submit(job)

    asyncio.run(go())


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The folder of a daemon that runs; by parameter with recorded runs of these names."""
    folder = short_dir()
    try:
        if names := getattr(request, "param", ()):
            write_for_daemon(folder, *names)
        with running_daemon(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("served", [("noisy_v1", "noisy_v2")], indirect=True, ids=["recorded"])
def test_jobs_and_a_run_are_walked_through(served: Path) -> None:
    with closing(Terminal([*WANLORA, "--dir", str(served)], cwd=ROOT, env=environment(NO_COLOR="1"))) as screen:
        screen.wait(
            lambda text: "2 jobs, 0 running" in text and "noisy_v2" in text, "the list: only then it is filtered"
        )
        screen.press("/", "v2", "enter")
        screen.wait("1 of 2 jobs")
        screen.press("R")
        screen.wait("Rename noisy_v2")
        screen.press("f1")
        screen.wait("In this dialog")
        screen.press("f1", "ctrl+u", "other_v2", "enter")
        screen.wait("noisy_v2 is called other_v2 now")
        screen.press("X")
        screen.wait("Remove other_v2 from the list?")
        screen.press("?")
        screen.wait("In this dialog")
        screen.press("?")
        screen.wait(lambda text: "Keep it (n)" in text and "In this dialog" not in text, "the question again")
        screen.press("y")
        screen.wait("No job has 'v2'")
        screen.press("escape")
        screen.wait("noisy_v1")
        screen.press("enter")
        screen.wait("attempt 3")
        screen.press("L")
        screen.wait("done: noisy_v1")  # the log's last line: only then it is searched
        screen.press("/", "lr changed", "enter")
        screen.wait("1 of 1 with 'lr changed'")
        screen.press("y")
        until(lambda: b"\x1b]52;c;" in screen.raw, "the line in the clipboard")
        screen.press("escape")
        screen.wait("attempt 3")
        screen.press("f", "y")
        until(lambda: copied(str(served / "noisy_v1")) in screen.raw, "the whole path in the clipboard")
        for key, wanted in (("z", "step 2400"), ("c", "◀"), ("t", "2 prompts")):
            screen.press(key)
            screen.wait(lambda text, wanted=wanted: wanted in text and "attempt 3" not in text, f"what {key} opens")
            screen.press("escape")
            screen.wait("attempt 3")
        screen.press("escape")
        screen.wait("1 job, 0 running")
        screen.press("D")
        screen.wait("step 4 of 6")  # whose copy it is stands before it only where the findings leave room
        screen.press("escape")
        screen.wait("Leave the wizard?")
        screen.press("enter")
        screen.wait("1 job, 0 running")
        screen.press("q")
        assert screen.wait_end() == 0


@pytest.mark.parametrize("served", [("noisy_v1", "noisy_v2")], indirect=True, ids=["recorded"])
def test_a_terminal_that_changes_its_size_shows_all_that_has_room(served: Path, tmp_path: Path) -> None:
    """On the dashboard, in a dialog over it and in the wizard: large, small and back, each drawn as if it had begun
    there."""

    def there_and_back(large: str, small: str, usual: str) -> None:
        screen.resize(160, 48)
        screen.wait(lambda text: large in text and len(text.split("\n")) == 48, f"{large} at 160x48")
        screen.resize(40, 12)
        screen.wait(lambda text: small in text and large not in text, f"{small} at 40x12")
        screen.resize(80, 24)
        screen.wait(lambda text: text == before and usual in text, "what there was before")

    env = environment(NO_COLOR="1", XDG_STATE_HOME=str(tmp_path / "state"), HF_HUB_OFFLINE="1")
    with closing(Terminal([*WANLORA, "--dir", str(served)], cwd=ROOT, env=env)) as screen:
        screen.wait("2 jobs, 0 running")
        screen.press("enter")
        before = screen.wait(lambda text: "went back" in text and "Detach" in text and text, "the plot")
        there_and_back("optimizer 0.100 s", "v View esc Jobs", "c Compare")
        screen.press("b")
        before = screen.wait(lambda text: "WRITTEN" in text and "Cancel" in text and text, "a dialog")
        there_and_back("optimizer 0.100 s", "goes back to one", "⏎ Go back to it")
        screen.press("escape")
        screen.wait("went back")
        screen.press("escape")
        screen.wait("2 jobs, 0 running")
        screen.press("n")
        before = screen.wait(lambda text: "step 1 of 6" in text and "What should" in text and text, "the wizard")
        there_and_back("4 Machine and settings", "Back ^D", "Style")
        screen.press("escape")
        screen.wait("2 jobs, 0 running")
        screen.press("q")
        assert screen.wait_end() == 0


def test_clips_are_mended_where_they_are(served: Path, tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "orbit", 3)
    (clips / "clip_02.txt").write_text("frung, orbit 90")
    before = (clips / "clip_01.txt").read_bytes()
    env = environment(NO_COLOR="1", XDG_STATE_HOME=str(tmp_path / "state"), HF_HUB_OFFLINE="1")
    with closing(Terminal([*WANLORA, "wizard", "--dir", str(served)], cwd=tmp_path, env=env)) as screen:
        screen.wait("step 1 of 6")
        screen.press("enter", os.path.relpath(clips, tmp_path), "enter")
        screen.wait("3 clips")
        screen.press("down", "x")
        screen.wait("Take in x")
        screen.press("u")
        screen.wait("undone")
        screen.wait("Leave out x")
        screen.press("enter")
        screen.wait("Write it ^S")
        screen.press("ctrl+u", "a castle, slowly", SAVE)
        until(lambda: (clips / "clip_00.txt").read_text() == "a castle, slowly\n", "the caption")
        screen.press(NEXT)
        screen.wait("step 3 of 6")
        screen.press("tab", "frung", "tab", "tab", "tab", "t")
        screen.wait("Write 2 captions")
        screen.press("enter")
        until(lambda: (clips / "clip_01.txt").read_text().startswith("[trigger], "), "the trigger")
        screen.wait(lambda text: "Write 2 captions" not in text, "the step")
        screen.press("z")
        until(lambda: (clips / "clip_01.txt").read_bytes() == before, "the caption as it was")
        screen.press(PALETTE, "rank")
        screen.wait("target.rank")
        screen.press("escape")
        screen.wait("step 3 of 6")
        screen.press("escape")
        screen.wait("Leave the wizard?")
        screen.press("enter")
        assert screen.wait_end() is not None


def test_jobs_that_wait_change_places_and_names_and_are_taken_out(served: Path, tmp_path: Path) -> None:
    first, *others = [write_job(tmp_path, name, steps=100_000, pace_ms=50) for name in ("runs", "one", "two", "three")]
    submit(served, first)
    with closing(Terminal([*WANLORA, "--dir", str(served)], cwd=ROOT, env=environment(NO_COLOR="1"))) as screen:
        screen.wait("1 job, 1 running")
        for job in others:
            submit(served, job)
        screen.wait("4 jobs, 1 running")
        assert in_turn(screen.text) == ["one", "two", "three"]
        screen.press("down", "down", "down", "K")  # the cursor stays on its job
        screen.wait(lambda text: in_turn(text) == ["one", "three", "two"], "three before two")
        screen.press("R")
        screen.wait("Rename three")
        screen.press("ctrl+u", "four", "enter")
        screen.wait(lambda text: in_turn(text) == ["one", "four", "two"], "three as four")
        screen.press("J")
        screen.wait(lambda text: in_turn(text) == ["one", "two", "four"], "four after two")
        screen.press("C")
        screen.wait("Cancel four?")
        screen.press("y")
        screen.wait(lambda text: in_turn(text) == ["one", "two"] and "cancelled" in text, "four cancelled")
        screen.press("X")
        screen.wait("Remove four from the list?")
        screen.press("y")
        screen.wait("3 jobs, 1 running")
        screen.press("q")
        assert screen.wait_end() == 0


def test_a_job_file_that_lies_there_is_submitted_and_opened_again_in_the_wizard(served: Path, tmp_path: Path) -> None:
    make_clips(tmp_path / "orbit", 1, frames=9)
    make_base(tmp_path / "base")
    job = Job(
        job=JobPanel(name="orbit_v1"),
        model=ModelPanel(path=str(tmp_path / "base")),
        training=TrainingPanel(steps=40),
        datasets=[DatasetPanel(path="orbit", num_frames=9, resolutions=[64])],
        sample=SamplePanel(width=64, height=64),
    )
    save_job(job, tmp_path / "orbit_v1.toml")
    env = environment(NO_COLOR="1", XDG_STATE_HOME=str(tmp_path / "state"), HF_HUB_OFFLINE="1")
    with closing(Terminal([*WANLORA, "--dir", str(served)], cwd=tmp_path, env=env)) as screen:
        screen.wait("No jobs yet")
        screen.press("S")
        screen.wait("Job file to submit")
        screen.press("/", "orbit_v1")
        screen.wait(lambda text: "orbit_v1.toml" in text, "the file")
        screen.press("enter", "enter")
        screen.wait(lambda text: "Submit" in text and "… looking" not in text and "Leave it" in text, "what is found")
        screen.press("enter")
        screen.wait("orbit_v1 is queued")
        screen.wait("1 job")
        screen.press("S")
        screen.wait("Job file to submit")
        screen.press("/", "orbit_v1")
        screen.wait("orbit_v1.toml")
        screen.press("enter", "enter")
        screen.wait(lambda text: "Open in the wizard" in text and "… looking" not in text, "what is found again")
        screen.press("tab", "enter")
        screen.wait("step 4 of 6")
        screen.press(PALETTE, "training.steps")
        screen.wait("training.steps")
        screen.press("enter")
        screen.wait(lambda text: "step 4 of 6" in text and "40" in text, "the steps of the file")
        screen.press("escape")
        screen.wait("Leave the wizard?")
        screen.press("enter")
        screen.wait("1 job")
        screen.press("q")
        assert screen.wait_end() == 0
