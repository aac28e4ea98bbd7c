"""Leaving while clips are being looked at: on a real terminal, bounded by the clips that are still looked at
afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from presets.job.schema import DatasetPanel, Job, JobPanel
from presets.job.toml_file import save_job
from tests.helpers.interface.harness import environment, until
from tests.helpers.interface.wizard_pilot import make_base
from tests.helpers.terminal import Terminal
from tests.helpers.tiers import thorough
from tests.helpers.videos import write_clip
from tests.helpers.waiting import PATIENCE
from wanlora_tui.draft.draft_store import Draft, DraftStore

MANY = 400
THREADS = 8  # that read clips at once, at most

# What runs: the program itself, which writes a line for each clip that it begins to look at, and one when it decides to
# leave. The looks of one kind are held after a few, until that or until the test lets them go: however slowly it acts,
# they are under way.
COUNTED = f"""
import os, sys, time, presets.clips.probe, presets.clips.clip_facts, presets.clips.scene_cuts, presets.facts.gather
path, held = sys.argv.pop(1), sys.argv.pop(1).encode() + b"\\n"
log, begun = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), []
def counted(function, word):
    def call(*args, **more):
        os.write(log, word)
        begun.append(word)
        if word == b"leave\\n":
            open(path + ".go", "w").close()
        while word == held and begun.count(word) > {MANY // 8} and not os.path.exists(path + ".go"):
            time.sleep(0.01)
        return function(*args, **more)
    return call
presets.clips.probe.probe_video = counted(presets.clips.probe.probe_video, b"clip\\n")
presets.facts.gather.find_cuts = counted(presets.facts.gather.find_cuts, b"cuts\\n")
import wanlora_tui.app, wanlora_tui.cli
wanlora_tui.app.WanloraApp.exit = counted(wanlora_tui.app.WanloraApp.exit, b"leave\\n")
sys.exit(wanlora_tui.cli.main())
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one clip under many names, a base model, and a job over both."""
    place = tmp_path_factory.mktemp("many")
    (place / "clips").mkdir()
    first = write_clip(place / "clips" / "clip_0000.mp4", frames=24)
    for i in range(1, MANY):
        os.link(first, place / "clips" / f"clip_{i:04}.mp4")
    make_base(place / "base")
    save_job(Job(job=JobPanel(name="orbit"), datasets=[DatasetPanel(path="clips")]), place / "job.toml")
    return place


class Counted:
    """What a counted program has looked at so far."""

    def __init__(self, log: Path) -> None:
        self.log = log

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def go(self) -> None:
        """Let the looks that are held go on, if they have not been ended."""
        self.log.with_name(f"{self.log.name}.go").touch()

    def looked(self, word: str) -> int:
        return self.lines.count(word)

    def after_leaving(self) -> int:
        lines = self.lines
        return len(lines) - 1 - lines.index("leave")


def command(counted: Counted, *args: str | Path, held: str = "clip") -> list[str]:
    return [sys.executable, "-c", COUNTED, str(counted.log), held, *map(str, args)]


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "looked.log")


@pytest.fixture
def at_clips(home: Path, many: Path, counted: Counted):  # type: ignore[no-untyped-def]
    """The wizard on a terminal, with a look at the many clips under way."""
    terminal = Terminal(command(counted), size=(80, 24), cwd=many, env=environment())
    try:
        terminal.wait("No jobs yet")
        terminal.press("n")
        terminal.wait("step 1 of 6")
        terminal.press("enter")
        terminal.wait("step 2 of 6")
        terminal.press("clips", "enter")
        terminal.wait(f"/{MANY}")  # looking at clips 120/2000
        yield terminal
    finally:
        terminal.close()


def ended(terminal: Terminal) -> int:
    until(lambda: not terminal.process.isalive(), "the end of the program")
    return int(terminal.process.exitstatus)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [*thorough("\x11"), "\x03"], ids=["ctrl+q", "ctrl+c"])
def test_leaving_ends_the_look_at_clips(at_clips: Terminal, counted: Counted, home: Path, key: str) -> None:
    assert counted.looked("clip") < MANY
    at_clips.press(key)
    assert ended(at_clips) == 0
    assert "Traceback" not in at_clips.text and "Exception" not in at_clips.text
    assert counted.after_leaving() <= THREADS, f"{counted.after_leaving()} of {MANY} clips"
    kept = DraftStore(home / "state" / "wanlora" / "draft.json").load()
    assert kept is not None and len(kept.folders) == 1, "the draft is kept"


def test_ctrl_c_leaves_out_of_a_text_field_and_over_a_dialog(at_clips: Terminal, counted: Counted) -> None:
    at_clips.press("f4")
    at_clips.wait("Take this folder")
    at_clips.press("\x03")
    assert ended(at_clips) == 0 and counted.after_leaving() <= THREADS


def test_escape_leaves_the_wizard_and_ends_its_look(at_clips: Terminal, counted: Counted) -> None:
    at_clips.press("escape")
    at_clips.wait("not read")  # the first ends the look alone
    at_clips.press("escape")
    at_clips.wait("Leave the wizard?")
    at_clips.press("enter")
    at_clips.wait("No jobs yet")
    before = counted.looked("clip")
    at_clips.press("n")
    counted.go()
    at_clips.wait("Continue the half-filled job")
    assert counted.looked("clip") - before <= THREADS and before < MANY
    at_clips.press("escape")
    at_clips.wait("No jobs yet")
    at_clips.press("q")
    assert ended(at_clips) == 0


def test_taking_the_folder_out_ends_its_look(at_clips: Terminal, counted: Counted) -> None:
    at_clips.press("f9")
    at_clips.wait(lambda text: f"/{MANY}" not in text, "the empty list")
    before = counted.looked("clip")
    counted.go()
    at_clips.press("f7")
    at_clips.wait("step 1 of 6")
    assert counted.looked("clip") - before <= THREADS and before < MANY
    at_clips.press("\x11")
    assert ended(at_clips) == 0


@pytest.mark.parametrize("key", [*thorough("\x11"), "\x03"], ids=["ctrl+q", "ctrl+c"])
def test_leaving_ends_the_search_for_cuts(home: Path, many: Path, counted: Counted, key: str) -> None:
    values = {"model.path": str(many / "base")}
    DraftStore(home / "state" / "wanlora" / "draft.json").save(
        Draft(step="review", kind="motion", folders=[str(many / "clips")], values=values)
    )
    terminal = Terminal(command(counted, held="cuts"), size=(80, 24), cwd=many, env=environment())
    try:
        terminal.wait("No jobs yet")
        terminal.press("n")
        terminal.wait("Continue the half-filled job")
        terminal.press("enter")
        until(lambda: counted.looked("cuts"), "the search for cuts")
        terminal.wait("… cuts")
        terminal.press(key)
        assert ended(terminal) == 0
        assert counted.looked("cuts") < MANY and counted.after_leaving() <= THREADS
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("new", "--kind", "motion", "--clips", "clips", "--out", "new.toml"), "clip"),
        pytest.param(("check", "job.toml"), "clip", marks=pytest.mark.thorough),
        (("check", "job.toml"), "cuts"),
    ],
)
def test_ctrl_c_ends_a_command_at_once(many: Path, counted: Counted, arguments: tuple[str, ...], word: str) -> None:
    process = subprocess.Popen(
        command(counted, *arguments, held=word),
        cwd=many,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: counted.looked(word) >= 5, "the first clips")
    before = counted.looked(word)
    process.send_signal(signal.SIGINT)
    counted.go()
    out, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, said) == (130, "", "wanlora: interrupted\n")
    assert counted.looked(word) - before < MANY // 4 and counted.looked(word) < MANY
    assert not (many / "new.toml").exists()
