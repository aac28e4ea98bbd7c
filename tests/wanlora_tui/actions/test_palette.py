"""What the palette finds of an app's actions and of a job's fields, and how it is written there."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from textual.app import App, SystemCommand
from textual.command import CommandList
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import DataTable

from tests.helpers.interface.wizard_pilot import make_clips, scanned, screen_text, until, wizard
from wanlora_tui.actions import all_actions
from wanlora_tui.actions.own_actions import OwnActions
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.screens.wizard.dialogs import Ask

pytestmark = pytest.mark.usefixtures("drawn_when_looked_at")


class Offers(OwnActions):
    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        for action in all_actions():
            if action.id.startswith("wizard."):
                yield SystemCommand(action.label, action.help, lambda: None)


async def typed(pilot: Pilot[None], words: str) -> list[str]:
    """What is found, the best first."""
    app: App[None] = pilot.app
    app.action_command_palette()
    await until(pilot, lambda: app.screen.query(CommandList), "the palette")
    await pilot.press(*("space" if c == " " else c for c in words))
    found = app.screen.query_one(CommandList)
    await until(pilot, lambda: not app.screen._show_busy and found.option_count, "what is found")  # type: ignore[attr-defined]
    return [str(found.get_option_at_index(i).hit.text) for i in range(found.option_count)]  # type: ignore[attr-defined]


async def test_an_action_is_found_by_its_label_or_its_help_with_all_brackets() -> None:
    async with Offers().run_test(size=(100, 30)) as pilot:
        for words in ("trigger", "begin every caption"):
            assert "Add [trigger]" in await typed(pilot, words)
            await until(pilot, lambda: "trigger word with [trigger], after" in screen_text(pilot.app), "its help")
            assert "Add [trigger]" in screen_text(pilot.app)
            await pilot.press("escape")


async def test_a_field_is_found_by_its_words_in_any_order(tmp_path: Path) -> None:
    draft = tmp_path / "draft.json"
    DraftStore(draft).save(Draft(step="settings", kind="motion", folders=[str(make_clips(tmp_path / "clips", 1))]))
    async with wizard(draft) as pilot:
        await pilot.press("enter")
        await scanned(pilot)
        for words, first in {
            "training steps": "Steps · training.steps",
            "steps": "Steps · training.steps",
            "rate learning": "Learning rate · training.lr",
            "launch": "Step 6: Review and launch",
            "trigger": "Trigger word · job.trigger",
        }.items():
            assert (await typed(pilot, words))[0] == first
            if words != "trigger":
                await pilot.press("escape")
        assert "Replaces [trigger] in captions" in screen_text(pilot.app)
        await pilot.press("escape")
        found = [text.partition(" ·")[0] for text in await typed(pilot, "base")]
        assert found.index("Blank prompt preservation") < found.index("Batch size"), "a word of a help, then letters"
        assert found.index("Name or path") < found.index("Batch size"), "the field that names the base"


async def test_a_question_is_not_to_be_maximized() -> None:
    app = OwnActions()
    async with app.run_test():
        for screen, offered in ((Screen[str](), True), (Ask("Leave?", "", {"leave": "Leave"}), False)):
            await app.push_screen(screen)
            await screen.mount(table := DataTable())
            screen.set_focus(table)
            assert ("Maximize" in {c.title for c in app.get_system_commands(screen)}) is offered
