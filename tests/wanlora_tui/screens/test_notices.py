"""Notices lie over nothing: over no finding, no number and no dialog, on any screen."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets._toast import Toast, ToastHolder, ToastRack

from tests.helpers.interface.dialogs import one_of_each
from tests.helpers.interface.wizard_pilot import WizardApp, make_base, make_clips, screen_of, screen_text, until
from tests.helpers.tiers import thorough
from tests.helpers.waiting import PATIENCE
from tests.wanlora_tui.screens.test_dashboard_numbers import app, recorded, settle, usual
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, record
from tests.wanlora_tui.screens.wizard.test_wizard import a_draft, resumed, reviewed
from wanlora_tui import app as wanlora_app
from wanlora_tui.draft.steps import NAMES
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.terminal.drawn_text import SafelyDrawn

pytestmark = pytest.mark.usefixtures("drawn_when_looked_at")
LONG = "what was said before it, with many words and all the names of files that there are. " * 2


class Over(SafelyDrawn):
    CSS_PATH = WizardApp.CSS_PATH
    HORIZONTAL_BREAKPOINTS = wanlora_app.WanloraApp.HORIZONTAL_BREAKPOINTS


def says(app: App[Any], words: str) -> bool:
    return words in screen_text(app)


def lies_over(screen: Screen[Any]) -> list[Widget]:
    """What is drawn where a notice is, and is none."""
    seen = {widget: region.intersection(clip) for widget, (region, clip) in screen._compositor.visible_widgets.items()}
    toasts = [region for widget, region in seen.items() if isinstance(widget, Toast)]
    assert toasts and all(screen.region.contains_region(region) for region in toasts)
    others = [widget for widget in seen if not isinstance(widget, Toast | ToastHolder | ToastRack | Screen)]
    return [widget for widget in others if any(toast.overlaps(seen[widget]) for toast in toasts)]


@pytest.mark.parametrize("size", [(80, 24), (60, 15), *thorough((160, 48))])
async def test_over_no_dialog(size: tuple[int, int], tmp_path: Path) -> None:
    for name, make in one_of_each(tmp_path).items():
        over: App[None] = Over()
        async with over.run_test(size=size, notifications=True) as pilot:
            await over.push_screen(make())
            over.notify(LONG, timeout=PATIENCE)
            over.notify("number 2", timeout=PATIENCE)
            await until(pilot, partial(says, over, "number 2"), "the notices")
            assert not lies_over(over.screen), f"{name}: {screen_text(over)}"


@pytest.mark.process
@pytest.mark.parametrize("size", [(80, 24), (40, 10), *thorough((60, 15), (160, 48))])
async def test_over_no_step_of_the_wizard(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clips(tmp_path / "orbit", 2)
    values = {"model.path": str(make_base(tmp_path / "base")), "datasets[0].num_frames": 40}
    wizard = WizardApp(a_draft(tmp_path, "clips", values=values))
    async with wizard.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: wizard.screen is not screen_of(pilot), "the offer")
        await resumed(pilot, "clips")
        for step in NAMES:
            await screen_of(pilot).go_to(step)
            if step == "review":
                await reviewed(pilot)
            wizard.notify(LONG, timeout=PATIENCE)
            await until(pilot, lambda: "said before" in screen_text(wizard), "the notice")
            assert not lies_over(screen_of(pilot)), f"{step}: {screen_text(wizard)}"
            wizard.clear_notifications()
            await until(pilot, lambda: "said before" not in screen_text(wizard), "no notice")


@pytest.mark.parametrize("size", [(80, 24), *thorough((100, 30)), (160, 48)])
@pytest.mark.parametrize("pane", ["", "p", "f"])
async def test_over_no_number_of_a_dashboard(size: tuple[int, int], pane: str, tmp_path: Path) -> None:
    async with app(recorded(usual(), tmp_path)).run_test(size=size, notifications=True) as pilot:
        if pane:
            await pilot.press(pane)
        pilot.app.notify(LONG, timeout=PATIENCE)
        await settle(pilot)
        assert not lies_over(pilot.app.screen), screen_text(pilot.app)


async def test_a_notice_that_is_taken_back_leaves_no_line() -> None:
    over = Over()
    async with over.run_test(size=(80, 24), notifications=True) as pilot:
        await over.screen.mount(page := VerticalScroll())
        for i in range(3):
            over.notify(f"number {i}", timeout=PATIENCE)
            await until(pilot, partial(says, over, f"number {i}"), "the notice")
            if i < 2:
                over._unnotify(next(iter(over._notifications)))
        await pilot.pause()
        assert page.region.height == 24 - 2, "the notice, and the row of the footer"


async def test_a_notice_stands_once_while_a_dialog_is_open_and_after_it() -> None:
    jobs = JobsApp([record(1, "orbit_v1", "running", 50, 100)])
    async with jobs.run_test(size=(80, 24), notifications=True) as pilot:

        def stand(*words: str) -> bool:
            return all(screen_text(jobs).count(each) == 1 for each in ("said before", "said with it", *words))

        for words in ("said before", "said with it", "said last"):
            jobs.notify(words, timeout=PATIENCE)
        await until(pilot, lambda: stand("said last"), "the notices over the list")
        jobs.push_screen(Confirm("Stop it?", "Stop", "Keep"))
        await until(pilot, lambda: "Stop it?" in screen_text(jobs) and stand("said last"), "those over the dialog")
        await pilot.click(list(jobs.screen.query(Toast))[-1])  # it goes, and those before it come to its place
        await until(pilot, lambda: stand() and "said last" not in screen_text(jobs), "the others, once")
        jobs.pop_screen()
        await until(pilot, lambda: "Stop it?" not in screen_text(jobs) and stand(), "those over the list again")
        assert "said last" not in screen_text(jobs)
