"""Screens at rest: what they offer fits, and a beat that tells nothing new draws nothing."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from textual._compositor import Compositor
from textual_image.widget import HalfcellImage

from daemon.wire.protocol import JobRecord, RunBeat
from daemon.wire.records import RunMachine
from presets.runs.events import read_events
from presets.runs.run_view import LogLine, StepPoint, apply_event
from tests.helpers import recorded_run
from tests.helpers.interface.drawn import settled
from tests.helpers.interface.runs import usual
from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_dashboard import app_over, settle, shown
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, every_state
from wanlora_tui.plot import loss_plot
from wanlora_tui.plot.loss_plot import LossPlot
from wanlora_tui.screens import dashboard
from wanlora_tui.screenshot import RecordedApp, load_run
from wanlora_tui.widgets.meters import Numbers

pytestmark = pytest.mark.process  # takes seconds


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a screen is drawn."""
    found: list[int] = []
    update = Compositor.render_update

    def counted(self: Compositor, *given: Any, **more: Any) -> Any:
        found.append(1)
        return update(self, *given, **more)

    monkeypatch.setattr(Compositor, "render_update", counted)
    return found


@pytest.mark.parametrize("key", ["", "L"])
async def test_a_dashboard_at_rest_draws_nothing(key: str, drawn: list[int], tmp_path: Path):
    """Nor does the log that stands before it."""
    async with app_over(usual(until=300), tmp_path).run_test(size=(160, 48)) as pilot:
        await settle(pilot)
        below = pilot.app.screen
        if key:
            await pilot.press(key)
            await until(pilot, lambda: pilot.app.screen is not below, "the log")
        await settle(pilot)
        below._ticking.cancel()
        for second in range(6):
            below.run.beat = RunBeat(1, "done", 9, trainer_alive=False, seconds_since_step=float(second))
            below._changed()
            await settle(pilot)
            if not second:  # the first beat was news
                drawn.clear()
        assert not drawn
        below.run.view.log.append(LogLine(below.run.view.updated_at, "log", "something new"))
        below.run.view.last_seq += 1
        below._changed()
        await until(pilot, lambda: "something new" in shown(pilot.app.screen), "what is news")


async def test_a_step_lays_nothing_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Nor does a beat after it, with what is known of its machine."""
    laid_out: list[int] = []
    reflow = Compositor.reflow
    monkeypatch.setattr(Compositor, "reflow", lambda *given: laid_out.append(1) or reflow(*given))
    file = usual(until=20).write(tmp_path / "orbit_v1")
    run = load_run(file, until_step=5)
    coming = [event for event, _ in read_events(file) if event.seq > run.view.last_seq]
    async with RecordedApp(run, HalfcellImage).run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        screen: Any = pilot.app.screen
        await until(pilot, lambda: "00.mp4" in shown(screen), "the preview that was there before")
        await settle(pilot)
        screen._ticking.cancel()
        laid_out.clear()
        for gib in range(1, 10):
            apply_event(run.view, coming.pop(0))
            run.beat = RunBeat(1, "running", 9, True, 0.0, RunMachine(memory=gib * 2**30, disk_free=gib * 2**30))
            screen._draw_news()
            screen._render_numbers()
            await settled(pilot)
            assert f"step {run.view.step}/300" in shown(screen) and f"disk {gib}.0 GiB" in shown(screen)
        assert not laid_out


async def test_a_step_lays_nothing_out_beside_the_list(monkeypatch: pytest.MonkeyPatch):
    app = every_state()
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        screen: Any = pilot.app.screen
        screen._ticking.pause()
        laid_out: list[int] = []
        reflow = Compositor.reflow
        monkeypatch.setattr(Compositor, "reflow", lambda *given: laid_out.append(1) or reflow(*given))
        view = app.jobs.views[1]
        for step in range(121, 125):
            view.step, view.last_seq = step, view.last_seq + 1
            screen._render_all()
            await settled(pilot)
            assert f"{step}/300, 4" in shown(screen), "beside the list"
        assert not laid_out


async def test_the_plot_is_drawn_now_and_then_for_steps_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What each of them says is told beside it at once. Steps that move nothing by a dot wait longer."""
    run = load_run(recorded_run.write(tmp_path) / "events.jsonl", until_step=1350)
    async with RecordedApp(run, HalfcellImage).run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        plot = pilot.app.screen.query_one(LossPlot)

        def step_to(step: int) -> float:
            """Seconds until it is drawn."""
            run.view.losses["low_noise"].append(StepPoint(step, 0.05, 5e-5, 1.8e9))
            run.view.step, run.view.last_seq = step, run.view.last_seq + 1
            plot.show(run.view)
            waiting = plot._redraw._waiting
            return waiting.when() - asyncio.get_running_loop().time() if waiting is not None else 0.0

        assert step_to(1380) == 0.0 and plot.figure.whole.high == 1380, "the first for some time"
        assert 5.0 < step_to(1381) <= 10.0, "a dot of the plot is several steps wide"
        assert 0.0 < step_to(1400) <= 5.0 and plot.figure.whole.high == 1380
        assert 0.0 < step_to(1401) <= 5.0, "not put off"
        monkeypatch.setattr(loss_plot, "STEP_SECONDS", 0.0)
        assert step_to(1402) == 0.0 and plot.figure.whole.high == 1402
        monkeypatch.setattr(loss_plot, "STEP_SECONDS", 5.0)
        step_to(1430)
        run.view.checkpoints.append(run.view.checkpoints[-1])
        step_to(1431)
        assert plot.figure.whole.high == 1431, "a mark is news"


async def test_what_time_alone_changes_is_drawn_at_every_other_beat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """And no timer rings beside the beats, nor where nobody looks."""
    run = load_run(usual(until=20).write(tmp_path / "orbit_v1"))
    now, asked = [100.0], []
    monkeypatch.setattr(dashboard, "time", SimpleNamespace(monotonic=lambda: now[0]))
    show = Numbers.show
    monkeypatch.setattr(Numbers, "show", lambda *given: asked.append(now[0]) or show(*given))
    async with RecordedApp(run, HalfcellImage).run_test(size=(160, 48)) as pilot:
        await settle(pilot)
        screen: Any = pilot.app.screen

        def beat() -> None:
            now[0] += 1.0
            run.beat = RunBeat(1, "running", 9, True, now[0] - 100.0)
            before = screen._ticking._timer
            screen._draw_news()
            assert before.cancelled() and screen._ticking.is_waited_for

        beat()
        asked.clear()
        for _ in range(6):
            beat()
        assert len(asked) == 3
        step = run.view.last_seq
        for _ in range(3):  # what is news draws them, and puts the next drawing off
            run.view.last_seq += 1
            beat()
            beat()
        assert run.view.last_seq == step + 3 and len(asked) == 6
        await pilot.press("L")
        await until(pilot, lambda: not screen._ticking.is_waited_for, "the log before it")
        run.view.last_seq += 1
        screen._draw_news()  # that was put off
        assert not screen._ticking.is_waited_for


def queued(width: int) -> JobsApp:
    about: dict[str, Any] = {"job_path": "/j", "out": "/o", "gpus": [0], "steps": 9}
    return JobsApp(
        [
            JobRecord(id=1, name="first", state="queued", position=1, **about),
            JobRecord(id=2, name="over", state="done", **about),
        ],
        {},
    )


@pytest.mark.parametrize(("width", "all_of_them"), [(160, True), (80, False), (60, False)])
async def test_the_footer_of_the_list_has_what_fits_and_never_half_a_key(width: int, all_of_them: bool):
    async with queued(width).run_test(size=(width, 24)) as pilot:
        await until(pilot, lambda: "q Quit" in shown(pilot.app.screen).splitlines()[-1], "the footer")
        footer = shown(pilot.app.screen).splitlines()[-1]
        wide_only = ("K Earlier", "J Later", "X Remove", "R Rename", "D Duplicate", "o Sort")
        assert all(key in footer for key in wide_only) == all_of_them, footer
        assert "Open" in footer and "n New" in footer, footer
