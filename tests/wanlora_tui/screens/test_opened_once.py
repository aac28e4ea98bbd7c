"""A dialog opens in one frame: what lies below it is drawn once, dimmed, and no more while nothing changes."""

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.renderables.background_screen import BackgroundScreen
from textual.screen import Screen

from tests.helpers.interface.dialogs import one_of_each
from tests.helpers.interface.wizard_pilot import make_base, make_clips, scanned, screen_of, screen_text, until, wizard
from tests.wanlora_tui.screens.wizard.test_wizard import a_draft, resumed
from wanlora_tui.widgets.clip_table import CaptionTable
from wanlora_tui.widgets.redraw_throttle import OPENS

pytestmark = pytest.mark.process


@pytest.fixture
def below(monkeypatch: pytest.MonkeyPatch) -> list[Screen[Any]]:
    """The screens drawn below another, as often as they are."""
    drawn: list[Screen[Any]] = []
    real = BackgroundScreen.__rich_console__

    def counted(self: BackgroundScreen, *args: Any) -> Any:
        drawn.append(self.screen)
        return real(self, *args)

    monkeypatch.setattr(BackgroundScreen, "__rich_console__", counted)
    return drawn


async def quiet(pilot: Pilot[None]) -> None:
    await pilot.pause(2 * OPENS)
    await pilot.pause()


async def test_every_dialog_is_drawn_once_over_what_is_below(
    tmp_path: Path, below: list[Screen[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clips(tmp_path / "orbit", 2)
    values, typed = {"model.path": str(make_base(tmp_path / "base"))}, {"datasets[0].caption_dropout": "often"}
    draft = a_draft(tmp_path, "captions", values=values, typed=typed)
    async with wizard(draft) as pilot:
        await resumed(pilot, "captions")
        await scanned(pilot)
        screen = screen_of(pilot)
        screen.query_one(CaptionTable).focus()
        await quiet(pilot)
        opens: dict[str, Any] = dict.fromkeys(("enter", "t", "question_mark", "ctrl+s", "escape"))
        opens |= {kind.__name__: make for kind, make in one_of_each(tmp_path).items()}
        for name, make in opens.items():
            below.clear()
            if make is None:
                await pilot.press(name)
            else:
                pilot.app.push_screen(make())
            await until(pilot, lambda: pilot.app.screen is not screen and below, f"what {name} opens, drawn")
            await quiet(pilot)
            assert below == [screen], f"{name}: {len(below)} times\n{screen_text(pilot.app)}"
            pilot.app.pop_screen()
            await until(pilot, lambda: pilot.app.screen is screen, "the step")
