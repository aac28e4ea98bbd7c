"""Screens at rest: what they offer fits, and a beat that tells nothing new draws nothing."""

from pathlib import Path
from typing import Any

import pytest
from textual._compositor import Compositor

from daemon.wire.protocol import JobRecord, RunBeat
from presets.runs.run_view import LogLine
from tests.helpers.interface.runs import usual
from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_dashboard import app_over, settle, shown
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp

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
        below._ticking.pause()
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
