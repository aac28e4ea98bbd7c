"""Texts of others that would act on a terminal, in every field of jobs, runs, findings, clips and answers, through all
commands and screens: nothing of them acts, and all of them can be read."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import tomlkit
from textual.screen import Screen
from textual_image.widget import HalfcellImage

from daemon.wire.protocol import JobRecord, RunBeat
from presets.job.schema import Job, PromptPanel
from presets.runs.checkpoints import StoredCheckpoint
from presets.runs.run_view import RunView
from tests.helpers import ROOT
from tests.helpers.hostile import (
    HOSTILE,
    MARKUP,
    READABLE,
    SHORT,
    HostileDaemon,
    acts,
    acts_on,
    hostile,
    hostile_daemon,
    hostile_events,
    hostile_view,
    texts,
)
from tests.helpers.interface.harness import environment, wanlora
from tests.helpers.interface.wizard_pilot import (
    WizardApp,
    at_step,
    make_base,
    make_clips,
    scanned,
    until,
)
from tests.helpers.terminal import Terminal
from tests.helpers.tiers import thorough
from tests.wanlora_tui.screens.test_dashboard import settle
from wanlora_tui.cli import main
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.draft.steps import NAMES
from wanlora_tui.feeds.job_list import JobList
from wanlora_tui.feeds.run_feed import RecordedRun
from wanlora_tui.screens.change import ChangeScreen
from wanlora_tui.screens.checkpoints import CheckpointsScreen
from wanlora_tui.screens.compare import CompareScreen
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.jobs import JobsScreen
from wanlora_tui.screens.wizard.dialogs import Ask
from wanlora_tui.screenshot import RecordedApp
from wanlora_tui.themes import ReadableThemes
from wanlora_tui.transfer.pictures import HerePictures

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds


# --- what is printed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon() -> Iterator[HostileDaemon]:
    with hostile_daemon() as daemon:
        yield daemon


COMMANDS = [
    ["jobs"],
    ["watch", "1", "--plain"],
    ["watch", "1"],
    ["stop", "1"],
    ["cancel", "1"],
    ["set", "1", "training.lr=5e-5"],
    ["save", "1"],
    ["sample", "1"],
    ["resume", "1"],
    ["daemon", "status"],
]


@pytest.mark.parametrize("refuses", [False, True], ids=["answers", "refuses"])
def test_what_a_daemon_answers_is_printed_harmless(
    daemon: HostileDaemon, refuses: bool, capsys: pytest.CaptureFixture[str]
):
    daemon.refuses = refuses
    for command in COMMANDS:
        main([*command, "--dir", str(daemon.dir)])
        said = capsys.readouterr()
        assert not acts(said.out + said.err), command
        assert READABLE in said.out + said.err or command[0] == "daemon", command


def test_json_is_harmless_too_and_says_what_it_was(daemon: HostileDaemon, capfdbinary: pytest.CaptureFixture[bytes]):
    main(["jobs", "--json", "--dir", str(daemon.dir)])
    out = capfdbinary.readouterr().out
    assert not acts(out.decode())
    assert msgspec.json.decode(out, type=list[JobRecord]) == [daemon.record]
    main(["watch", "1", "--json", "--dir", str(daemon.dir)])
    out = capfdbinary.readouterr().out
    assert not acts(out.decode())
    assert [json.loads(line)["data"] for line in out.splitlines()] == [e.data for e in hostile_events()]
    main(["daemon", "status", "--json", "--dir", str(daemon.dir)])
    out = capfdbinary.readouterr().out
    assert not acts(out.decode()) and json.loads(out)["version"] == HOSTILE


def test_the_terminal_of_a_command_gets_nothing_of_it(daemon: HostileDaemon):
    for command in (["watch", "1"], ["jobs"]):
        terminal = RawTerminal(
            [sys.executable, "-m", "wanlora_tui.cli", *command, "--dir", str(daemon.dir)], cwd=ROOT, env=environment()
        )
        try:
            terminal.wait_end()
            assert not acts_on(terminal.raw) and READABLE in terminal.words
        finally:
            terminal.close()


def write_hostile(path: Path, field: str, text: str) -> None:
    """A job file with one field, whatever its type, set to a text."""
    document: dict = {"job": {"name": "orbit"}, "datasets": [{"path": "clips"}]}
    at: dict = document
    *parents, last = field.split(".")
    for part in parents:
        name, listed, _ = part.partition("[")
        at = at.setdefault(name, [{}] if listed else {})
        at = at[0] if listed else at
    name, listed, _ = last.partition("[")
    at[name] = [text] if listed else text
    path.write_text(tomlkit.dumps(document))


@pytest.mark.parametrize("field", texts(Job))
def test_every_field_of_a_job_file(field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Refused or taken: what is said about it is harmless."""
    (tmp_path / "clips").mkdir()
    job = tmp_path / "job.toml"
    write_hostile(job, field, HOSTILE)
    assert main(["check", str(job)]) in (0, 1)
    said = capsys.readouterr()
    assert said.out + said.err and not acts(said.out + said.err), field


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips whose names and captions are hostile, and a job on it whose texts are."""
    folder = tmp_path_factory.mktemp("footage")
    clips = make_clips(folder / f"clips{SHORT}")
    for clip in sorted(clips.glob("*.mp4")):
        clip.rename(clip.with_name(f"{clip.stem}{SHORT}[red]x.mp4"))
    for caption in sorted(clips.glob("*.txt")):
        caption.rename(caption.with_name(f"{caption.stem}{SHORT}[red]x.txt")).write_text(HOSTILE)
    (clips / f"note\x9b2J{SHORT}.md").write_text("x")
    document = {
        "job": {"name": "orbit", "trigger": f"trig{SHORT}"},
        "model": {"path": str(make_base(folder / "base"))},
        "datasets": [{"path": str(clips), "default_caption": HOSTILE, "num_frames": 5}],
        "sample": {"negative": HOSTILE, "prompts": [{"prompt": HOSTILE, "ctrl_img": f"no{SHORT}.png"}]},
    }
    (folder / "job.toml").write_text(tomlkit.dumps(document))
    return folder


@pytest.mark.parametrize("command", ["check", "plan", "clips", "timesteps", "checkpoints", "train", "submit"])
def test_hostile_clips_and_captions(command: str, footage: Path):
    said = wanlora(command, footage / "job.toml", cwd=footage)
    assert not acts(said.stdout + said.stderr), command
    if command in ("check", "clips", "train", "submit"):
        assert r"\x1b]2;PWNED\x07" in said.stdout + said.stderr


def test_what_is_typed_is_harmless_in_the_answer(capsys: pytest.CaptureFixture[str]):
    for line in (["check", f"no{HOSTILE}.toml"], ["set", "1", HOSTILE], ["new", "--kind", "style", "--clips", SHORT]):
        assert main(line) == 1
        assert not acts(capsys.readouterr().err)
    for line in ([HOSTILE], ["check", "a", HOSTILE], ["watch", "--since", HOSTILE], [f"--{HOSTILE}"]):
        with pytest.raises(SystemExit):
            main(line)
        said = capsys.readouterr().err
        assert not acts(said) and READABLE in said


def test_a_trainer_in_the_foreground_says_it_harmless(footage: Path, tmp_path: Path):
    """The engine is a process of its own, with a bar on a terminal."""
    said = subprocess.run(
        [sys.executable, "-m", "engine", str(footage / "job.toml"), "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 1 and not acts(said.stdout + said.stderr)
    assert r"\x1b]2;PWNED\x07" in said.stderr


# --- what is drawn --------------------------------------------------------------------------------------------


class RawTerminal(Terminal):
    """One that keeps every byte it gets."""

    raw = b""

    def came(self, data: bytes) -> None:
        self.raw += data


def drawn(screen: Screen[None]) -> str:
    """What the terminal would get of the screen, but for pictures; nothing in it acts."""
    lines = []
    for strip in screen._compositor.render_strips():
        for segment in strip:
            assert segment.control or not acts(segment.text), segment
            link = segment.style.link if segment.style else None
            assert link is None, f"taken for markup: {link}"
            assert not (segment.style and "bell" in str(segment.style.meta)), "taken for markup"
        lines.append("".join(segment.text for segment in strip if not segment.control))
        assert len(lines) == 1 or sum(s.cell_length for s in strip) == screen.size.width
    return "\n".join(lines)


def flat(text: str) -> str:
    return "".join(text.split())


def shown_run(folder: Path, state: str = "failed", view: RunView | None = None) -> RecordedRun:
    record = hostile(JobRecord, id=1, state=state, gpus=[0], out=str(folder))
    run = RecordedRun(record, hostile_events())
    run.view, run.problem, run.away = view or run.view, HOSTILE, HOSTILE
    run.beat = RunBeat(1, record.state, 1, trainer_alive=True, seconds_since_step=0.0)
    return run


def every_field() -> RunView:
    view: RunView = hostile(RunView, findings=hostile_view().findings)  # tables with keys that readers rely on
    return view


VIEWS: list[Callable[[], RunView]] = [hostile_view, every_field]


@pytest.mark.parametrize("size", [(80, 24), *thorough((160, 48))], ids=["80x24", "160x48"])
@pytest.mark.parametrize(
    ("state", "view"),
    [
        pytest.param("running", hostile_view, id="running-events"),
        pytest.param("failed", every_field, id="failed-every field"),
        pytest.param("running", every_field, id="running-every field", marks=pytest.mark.thorough),
        pytest.param("failed", hostile_view, id="failed-events", marks=pytest.mark.thorough),
        *(pytest.param("done", view, id=f"done-{view.__name__}", marks=pytest.mark.thorough) for view in VIEWS),
    ],
)
async def test_the_dashboard(state: str, view: Callable[[], RunView], size: tuple[int, int], tmp_path: Path):
    made = view()
    if state == "running":
        made.state, made.phase.name = "running", "paused"
    app = RecordedApp(shown_run(tmp_path, state, made), HalfcellImage)
    async with app.run_test(size=size, notifications=True) as pilot:
        said = ""
        await settle(pilot)
        said += drawn(app.screen)
        for pane in ("l", "f", "v", "p"):
            await pilot.press(pane)
            await settle(pilot)
            said += drawn(app.screen)
        assert READABLE in flat(said) and r"\x1b]2;PWNED" in flat(said)
        await app.push_screen(CompareScreen(shown_run(tmp_path), tmp_path, HalfcellImage, pictures=HerePictures()))
        await settle(pilot)
        drawn(app.screen)


async def test_dialogs_lists_and_notifications(tmp_path: Path):
    class App(ReadableThemes):
        CSS_PATH = ROOT / "wanlora_tui" / "app.tcss"

    jobs = JobList()
    jobs.load([hostile(JobRecord, id=1, state="failed", gpus=[0]), hostile(JobRecord, id=2, state="running", gpus=[0])])
    jobs.load_view(jobs.records[2], hostile(RunView))
    jobs.problem = HOSTILE
    app = App()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        screens: list[Screen] = [
            JobsScreen(None, jobs, host=HOSTILE),  # type: ignore[arg-type]
            CheckpointsScreen(HOSTILE, tmp_path / SHORT, [hostile(StoredCheckpoint)]),
            ChangeScreen(HOSTILE, {}),
            Confirm(HOSTILE, "Yes", "No"),
        ]
        for screen in screens:
            await app.push_screen(screen)
            await settle(pilot)
            said = flat(drawn(app.screen))
            assert r"PWNED" in said, screen
        app.notify(HOSTILE, title=HOSTILE, markup=True)
        await settle(pilot)
        said = flat(drawn(app.screen))
        assert said.count(READABLE) >= 2 and flat(MARKUP) in said


@pytest.mark.parametrize("step", NAMES[1:])
async def test_the_wizard(step: str, footage: Path, tmp_path: Path):
    """A draft whose clips and texts are hostile, and one field that has no value yet."""
    [clips] = [p for p in footage.iterdir() if p.name.startswith("clips")]
    store = DraftStore(tmp_path / "draft.json")
    draft = Draft(
        kind="motion",
        folders=[str(clips)],
        step=step,
        values={"model.path": str(footage / "base"), "sample.negative": HOSTILE},
        typed={"training.lr": HOSTILE, "job.name": HOSTILE, "job.trigger": HOSTILE},
        prompts=[PromptPanel(prompt=HOSTILE, ctrl_img=f"no{SHORT}.png")],
        job_path=str(tmp_path / f"job{SHORT}.toml"),
    )
    store.save(draft)
    app = WizardApp(store.path)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, Ask), "the offer to continue")
        drawn(app.screen)
        await pilot.press("enter")
        await at_step(pilot, step)
        await scanned(pilot)
        if step == "settings":
            await pilot.press("down")  # from the machine to the job
        await settle(pilot)
        assert "PWNED" in flat(drawn(app.screen))


async def test_the_real_interface_on_a_terminal(daemon: HostileDaemon):
    """The raw bytes that the terminal of the whole program gets: the list of jobs, and the dashboard."""
    daemon.refuses = False
    for command in (["attach", "1"], []):
        terminal = RawTerminal(
            [sys.executable, "-m", "wanlora_tui.cli", *command, "--dir", str(daemon.dir)],
            cwd=ROOT,
            env=environment(),
            size=(150, 44),
        )
        try:
            terminal.wait("PWNED")
            for key in "lfp" if command else ():
                terminal.press(key)
            terminal.wait(lambda text: READABLE in flat(text))
            terminal.press("q")
            terminal.wait_end()
            assert not acts_on(terminal.raw)
        finally:
            terminal.close()
