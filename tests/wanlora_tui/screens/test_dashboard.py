"""The dashboard over recorded runs: three sizes, every pane, no colour, and nothing outside the screen."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget
from textual_image.widget import HalfcellImage

from presets.runs.run_view import LogLine, RunView
from tests.helpers.interface.runs import Tape, usual
from tests.helpers.interface.wizard_pilot import until
from wanlora_tui.film.poster import Poster
from wanlora_tui.film.view import FilmView
from wanlora_tui.plot.loss_plot import LossPlot
from wanlora_tui.screenshot import RecordedApp, load_run, main
from wanlora_tui.widgets.event_log_view import EventLogView
from wanlora_tui.widgets.files_list import FilesList
from wanlora_tui.widgets.meters import Numbers
from wanlora_tui.widgets.phase_bar import PhaseBar

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds

SIZES = [(80, 24), pytest.param((100, 30), marks=pytest.mark.thorough), (160, 48)]  # all three: the pictures


def shown(screen: Screen[None]) -> str:
    """The text on the screen, as a terminal would have it."""
    return "\n".join("".join(segment.text for segment in strip) for strip in screen._compositor.render_strips())


def app_plot(screen: Screen[None]) -> str:
    return "".join("".join(signs) for signs, _ in screen.query_one(LossPlot).figure.rows)


def outside(screen: Screen[None]) -> Iterator[str]:
    """Widgets that reach over the edge of the screen, and are not in something that scrolls."""

    def scrolls(widget: Widget) -> bool:
        return any(
            isinstance(a, Widget) and (a.allow_vertical_scroll or a.allow_horizontal_scroll)
            for a in widget.ancestors
            if a is not screen
        )

    for widget in screen.walk_children(Widget):
        if (
            widget.is_on_screen
            and widget.region.area
            and not scrolls(widget)
            and not screen.region.contains_region(widget.region)
        ):
            yield f"{widget!r} {widget.region}"


def app_over(tape: Tape, folder: Path) -> RecordedApp:
    return RecordedApp(load_run(tape.write(folder / tape.name)), HalfcellImage)


async def settle(pilot: Pilot[None]) -> None:
    for _ in range(4):
        await pilot.pause()


@pytest.mark.parametrize("size", SIZES)
async def test_what_matters_is_there_at_every_size(size: tuple[int, int], tmp_path: Path):
    async with app_over(usual(), tmp_path).run_test(size=size) as pilot:
        await settle(pilot)
        text = shown(pilot.app.screen)
        for words in (
            "orbit_v1",
            "► running",
            "● daemon alive",
            "● trainer progressing",
            "training █",
            "40% 120/300",
            "high noise",
            "low noise",
            "high loss 0.",
            "ETA 56s",
            "VRAM █",
            "18.2/140 GiB",
            "61.5/512 GiB",
            "checkpoint checkpoints/step_000000100",
            "Detach",
            "Stop",
        ):
            assert words in text, words
        plot = app_plot(pilot.app.screen)
        assert "●" in plot and "○" in plot  # both trends, each with a sign of its own
        assert not list(outside(pilot.app.screen))


PANES = {
    "p": ["▀▀▀", "orbit 360 around the castle", "step_000000100"],
    "l": ["attempt 1 started"],
    "f": ["Run folder", "2 checkpoints", "castle.mp4 would play"],
}


@pytest.mark.parametrize("size", SIZES)
async def test_every_pane_can_be_reached(size: tuple[int, int], tmp_path: Path):
    async with app_over(usual(), tmp_path).run_test(size=size) as pilot:
        for key, words in PANES.items():
            await pilot.press(key)
            await settle(pilot)
            text = shown(pilot.app.screen)
            together = "".join(text.split())  # a long path is broken at the edge
            assert all("".join(word.split()) in together for word in words), (key, text)
            assert not list(outside(pilot.app.screen)), key


async def test_v_goes_round_all_panes_and_the_same_key_goes_back(tmp_path: Path):
    async with app_over(usual(), tmp_path).run_test(size=(80, 24)) as pilot:
        panes = []
        for _ in range(4):
            await pilot.press("v")
            await settle(pilot)
            panes.append([p for p in ("plot", "preview", "log", "files") if pilot.app.screen.has_class(f"-pane-{p}")])
        assert panes == [["preview"], ["log"], ["files"], ["plot"]]
        await pilot.press("p", "p")
        assert pilot.app.screen.has_class("-pane-plot")


async def test_in_a_terminal_made_wide_all_numbers_have_their_rows(tmp_path: Path):
    async with app_over(usual(), tmp_path).run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "lr 1e-4" in shown(pilot.app.screen), "the narrow screen")
        await pilot.resize_terminal(160, 48)
        await until(pilot, lambda: "optimizer 0.020 s" in shown(pilot.app.screen), "the last of the numbers")


async def test_a_run_on_the_cpu_has_no_gpu(tmp_path: Path):
    tape = usual()
    next(event for event in tape.events if event.kind == "started").data["device"] = "CPU"
    async with app_over(tape, tmp_path).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(pilot.app.screen)
        assert text.splitlines()[0].rstrip().endswith("attempt 1  CPU") and "GPU" not in text, text


async def test_it_follows_a_change_of_size(tmp_path: Path):
    async with app_over(usual(), tmp_path).run_test(size=(160, 48)) as pilot:
        for size in ((80, 24), (40, 12), (200, 60), (100, 30)):
            await pilot.resize_terminal(*size)
            await settle(pilot)
            assert "orbit_v1" in shown(pilot.app.screen)
        assert not list(outside(pilot.app.screen))


async def test_after_a_change_of_size_everything_fits_without_waiting_for_the_next_step(tmp_path: Path):
    async with app_over(usual(), tmp_path).run_test(size=(80, 24)) as pilot:
        for size in ((160, 48), (124, 30), (80, 24), (200, 60), (60, 20)):
            await pilot.resize_terminal(*size)
            await settle(pilot)
            screen = pilot.app.screen
            phase, numbers = screen.query_one(PhaseBar), screen.query_one(Numbers)
            lines = shown(screen).splitlines()
            assert cell_len(lines[phase.region.y].rstrip()) == phase.content_region.right, (size, lines[phase.region.y])
            rows = "\n".join(
                line[numbers.region.x : numbers.region.right]
                for line in lines[numbers.region.y : numbers.region.bottom]
            )
            assert "step 120/300" in rows and "ETA 56s" in rows and "…" not in rows, (size, rows)


async def test_the_log_follows_over_a_change_of_size(tmp_path: Path):
    tape = usual(until=290, steps=300)
    for i in range(60):
        tape.add("log", level="info", text=f"line {i}: " + "long enough to be broken when it gets narrow " * 2)
    run = load_run(tape.write(tmp_path / tape.name))
    async with RecordedApp(run, HalfcellImage).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        log = pilot.app.screen.query_one(EventLogView)
        for size in ((160, 48), (100, 30), (70, 20), (50, 12), (200, 60), (80, 24)):
            await pilot.resize_terminal(*size)
            await settle(pilot)
            run.view.log.append(LogLine(tape.now + 1, "log", f"written at {size}"))
            log.show(run.view.log)
            await settle(pilot)
            assert log.following and (size == (50, 12) or f"written at {size}" in shown(pilot.app.screen)), size
        await pilot.press("l", "g")
        await pilot.resize_terminal(100, 30)
        await settle(pilot)
        assert not log.following  # a reader's place is kept


@pytest.mark.parametrize("size", SIZES)
async def test_without_colour_it_reads_the_same(size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with app_over(usual(), tmp_path).run_test(size=size) as pilot:
        await settle(pilot)
        text = shown(pilot.app.screen)
        assert all(word in text for word in ("► running", "● high noise", "○ low noise", "● trainer progressing"))
        for strip in pilot.app.screen._compositor.render_strips():
            for segment in strip:
                for colour in (segment.style.color, segment.style.bgcolor) if segment.style else ():
                    assert colour is None or colour.triplet is None or len({*colour.triplet}) == 1, segment


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("done", "✓ done  orbit_v1_high_noise.safetensors"),
        ("stopped", "■ stopped  asked to stop"),
        ("failed", "✗ failed  out of memory. Lower the resolution."),
    ],
)
async def test_how_it_ended_is_said(end: str, words: str, tmp_path: Path):
    tape = usual()
    if end == "done":
        tape.done()
    elif end == "stopped":
        tape.add("stopped", step=120, path="", why="asked to stop")
    else:
        tape.add("failed", cause="out of memory.", next="Lower the resolution.")
    async with app_over(tape, tmp_path).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert words in shown(pilot.app.screen)


KILLED = (
    "The trainer was killed by SIGKILL after step 120. If nobody did that by hand, a memory limit of the container or"
    " batch system is likely. Resume from the last checkpoint with: wanlora resume orbit_v1\nIts last lines:\nstep"
    " 119/300 low_noise\nstep 120/300 low_noise"
)


def ended_by(state: str, outcome: str, folder: Path) -> RecordedApp:
    """The run that the daemon has given that state; its trainer said nothing of it."""
    run = load_run(usual().write(folder / "orbit_v1"))
    run.record = msgspec.structs.replace(run.record, state=state, outcome=outcome)
    return RecordedApp(run, HalfcellImage)


@pytest.mark.parametrize("size", SIZES)
async def test_a_killed_trainer_s_end_can_be_read_whole(size: tuple[int, int], tmp_path: Path):
    async with ended_by("failed", KILLED, tmp_path).run_test(size=size) as pilot:
        await settle(pilot)
        text = " ".join(shown(pilot.app.screen).split())
        assert (
            "✗ failed The trainer was killed by SIGKILL after step 120." in text
            and "with: wanlora resume orbit_v1 More: f" in text
        ), text
        assert "took 40s" in text and "ETA" not in text
        await pilot.press("f")
        await settle(pilot)
        assert "Its last lines:" in shown(pilot.app.screen) and "step 119/300 low_noise" in shown(pilot.app.screen)
        assert not list(outside(pilot.app.screen))


async def test_an_earlier_end_is_not_told_of_a_job_that_waits_again(tmp_path: Path):
    async with ended_by("queued", "stopped on request", tmp_path).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "… queued" in shown(pilot.app.screen) and "stopped on request" not in shown(pilot.app.screen)


async def test_a_job_that_has_not_begun_says_when_it_will_and_has_no_attempt(tmp_path: Path):
    run = load_run(usual().write(tmp_path / "orbit_v1"))
    run.view, now = RunView(), time.time()
    run.record = msgspec.structs.replace(
        run.record, state="queued", attempt=0, step=0, steps=77, position=2, starts_at=now + 7200, ends_at=now + 9000
    )
    async with RecordedApp(run, HalfcellImage).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = " ".join(shown(pilot.app.screen).split())
        assert "… queued (2) starts in ~2 h, ends " in text and "step 0/77" in text and "attempt" not in text


@pytest.mark.parametrize("size", SIZES)
async def test_a_job_that_is_to_be_restarted_says_when_and_why_and_offers_to_do_it_now(
    size: tuple[int, int], tmp_path: Path
):
    run = load_run(usual().write(tmp_path / "orbit_v1"))
    run.record = msgspec.structs.replace(
        run.record,
        state="queued",
        waiting="The trainer was killed by SIGKILL after step 120.",
        restart_at=time.time() + 3600.4,
        restarts=2,
        most_restarts=3,
    )
    async with RecordedApp(run, HalfcellImage).run_test(size=size) as pilot:
        await settle(pilot)
        text = " ".join(shown(pilot.app.screen).split())
        assert "trainer restarts in " in text and "(2 of 3)" in text and "r Resume" in text
        assert "… queued The trainer was killed by SIGKILL after step 120." in text, text


async def test_a_finding_and_its_fix_are_two_sentences(tmp_path: Path):
    tape = usual()
    tape.add(
        "finding",
        code="overfit",
        severity="warning",
        field="",
        message="the low-noise expert learns the clips by heart",
        fix="Stop and take an earlier checkpoint",
    )
    async with app_over(tape, tmp_path).run_test(size=(160, 48)) as pilot:
        await settle(pilot)
        files = pilot.app.screen.query_one(FilesList).text
        assert (
            "! warning: the low-noise expert learns the clips by heart. Stop and take an earlier checkpoint." in files
        )


@pytest.mark.parametrize(
    ("state", "stop", "resume"),
    [
        ("queued", False, False),
        ("starting", True, False),
        ("running", True, False),
        ("stopping", None, False),
        ("stopped", False, True),
        ("failed", False, True),
        ("cancelled", False, True),
        ("done", False, False),
    ],
)
async def test_the_footer_offers_what_the_state_allows(state: str, stop: bool | None, resume: bool, tmp_path: Path):
    run = load_run(usual().write(tmp_path / "orbit_v1"))
    run.record = msgspec.structs.replace(run.record, state=state)
    async with RecordedApp(run, HalfcellImage).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        footer = shown(pilot.app.screen).splitlines()[-1]
        assert ("s Stop" in footer, "r Resume" in footer) == (stop is not False, resume), footer
        assert "q Detach" in footer, footer
        pilot.app.screen._client = object()  # with a daemon they can be pressed
        assert (pilot.app.screen.check_action("stop_run", ()), pilot.app.screen.check_action("resume_run", ())) == (
            stop,
            resume,
        )


async def test_loading_shows_its_progress(tmp_path: Path):
    tape = Tape()
    tape.start()
    tape.phase("loading", 3, 4, "text encoder")
    async with app_over(tape, tmp_path).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = shown(pilot.app.screen)
        assert (
            "loading text encoder █" in text
            and "75% 3/4" in text
            and "trainer loading" in text
            and "from the first step on" in text
        )


async def test_a_poster_that_cannot_be_read_is_said(tmp_path: Path):
    tape = usual()
    app = app_over(tape, tmp_path)
    poster = tmp_path / tape.name / "samples/step_000000100/00.png"
    poster.write_bytes(b"not a picture")
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("p")
        await settle(pilot)
        assert "The poster cannot be shown" in shown(pilot.app.screen)
        assert pilot.app.screen.query_one(Poster).query_one(FilmView).frame is None


async def test_the_log_keeps_a_readers_place(tmp_path: Path):
    tape = usual(until=290, steps=300)
    for i in range(60):
        tape.add("log", level="info", text=f"line {i}")
    run = load_run(tape.write(tmp_path / tape.name))
    async with RecordedApp(run, HalfcellImage).run_test(size=(80, 24)) as pilot:
        await pilot.press("l")
        await settle(pilot)
        log = pilot.app.screen.query_one(EventLogView)
        assert log.following and "line 59" in shown(pilot.app.screen)
        await pilot.press("g")
        await settle(pilot)
        run.view.log.append(run.view.log[-1].__class__(tape.now + 1, "log", "the newest"))
        log.show(run.view.log)
        await settle(pilot)
        assert not log.following and "the newest" not in shown(pilot.app.screen)
        await pilot.press("G")
        await settle(pilot)
        assert log.following and "the newest" in shown(pilot.app.screen)


def test_the_screenshot_is_the_dashboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    events = usual().write(tmp_path / "orbit_v1")
    out = tmp_path / "docs" / "dashboard.svg"
    assert main([str(out), "--events", str(events), "--until-step", "60"]) == 0
    svg = out.read_text()
    assert "60/300" in svg.replace("&#160;", " ") and "<svg" in svg and str(out) in capsys.readouterr().out
    assert not re.search(r"120/300", svg)


def test_a_screenshot_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "a.svg"), "--events", str(tmp_path / "none.jsonl")]) == 1
    assert "cannot be read" in capsys.readouterr().err
