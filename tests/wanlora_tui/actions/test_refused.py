"""What the help says of keys that would do nothing now, and what the palette calls the others."""

from pathlib import Path

import pytest
from textual.screen import Screen

from tests.helpers.interface.films import filmed
from tests.helpers.interface.runs import usual
from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_dashboard import app_over, settle, shown
from wanlora_tui.actions import all_actions
from wanlora_tui.screens.help import HelpScreen, of_screen

pytestmark = pytest.mark.process  # takes seconds


def twice(screen: Screen[None]) -> set[str]:
    """Labels of two actions that a screen binds."""
    bound = {binding.binding.id for binding in screen.active_bindings.values()}
    labels = [a.label for a in all_actions() if a.id in bound and not a.id.startswith(("list.", "text.", "preview."))]
    return {label for label in labels if labels.count(label) > 1}


async def test_the_help_says_what_would_do_nothing_now(tmp_path: Path):
    tape = usual(until=300, steps=300)
    tape.add("done", step=300, files=[], seconds=600.0)
    app = app_over(tape, tmp_path)
    async with app.run_test(size=(160, 120)) as pilot:
        await settle(pilot)
        refused = app.refused("dashboard")
        assert {"dashboard.stop", "dashboard.save", "dashboard.fetch"} <= refused
        assert not {"dashboard.log", "dashboard.view", "dashboard.quit"} & refused
        await app.push_screen(HelpScreen(of_screen("dashboard"), refused))
        await until(pilot, lambda: "Dashboard" in shown(app.screen), "the help")
        text = " ".join(shown(app.screen).split())
        assert "Save a checkpoint and stop; the job can be resumed. (not now)" in text
        assert "Next view: loss, preview, log, files. (not now)" not in text


async def test_no_two_actions_of_a_screen_are_called_the_same(tmp_path: Path):
    """The palette finds them by these names."""
    app = app_over(filmed(tmp_path / "orbit_v1"), tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        assert twice(app.screen) == set()
        for key in ("c", "t", "L"):
            below = app.screen
            await pilot.press(key)
            await until(pilot, lambda below=below: app.screen is not below, f"what {key} opens")
            await settle(pilot)
            assert twice(app.screen) == set(), key
            await pilot.press("escape")
            await until(pilot, lambda below=below: app.screen is below, "the dashboard")
