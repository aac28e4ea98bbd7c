"""Help over dialogs: every one has it, by `?` or ^] and by the palette, and is as it was when it is closed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Button, Input, TextArea

from tests.helpers.interface.dialogs import all_dialogs, one_of_each
from tests.helpers.interface.wizard_pilot import screen_text, until
from tests.helpers.tiers import thorough
from tests.wanlora_tui.actions.test_palette import typed as found_in_palette
from wanlora_tui import app as wanlora_app
from wanlora_tui.actions import all_actions, bindings
from wanlora_tui.actions.own_actions import OwnActions
from wanlora_tui.draft.caption_history import CaptionChange
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.help import WIDGET_KEYS, HelpScreen, of_dialog, of_screen
from wanlora_tui.screens.wizard import clip_dialogs
from wanlora_tui.screens.wizard.clip_dialogs import CaptionsDialog
from wanlora_tui.screens.wizard.dialogs import Ask
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.key_order import KeysInOrder

pytestmark = pytest.mark.usefixtures("drawn_when_looked_at")
HELP_OF = {action.id: action.help for action in all_actions()}
OWN = set(HELP_OF) - {"app.help"}


class Asking(OwnActions, KeysInOrder):
    BINDINGS = bindings("app.interrupt")
    CSS_PATH = wanlora_app.__file__.replace("app.py", "app.tcss")
    HORIZONTAL_BREAKPOINTS = wanlora_app.WanloraApp.HORIZONTAL_BREAKPOINTS
    action_help = wanlora_app.WanloraApp.action_help  # type: ignore[assignment]


def state(dialog: Screen[object]) -> list[object]:
    """What its user has done in it."""
    texts = [field.value for field in dialog.query(Input)] + [area.text for area in dialog.query(TextArea)]
    return [texts, dialog.focused]


def help_key(app: Asking) -> list[str]:
    """As the footer shows it."""
    return [offer.shown_key for offer in app.screen.query_one(FittingFooter).shown if offer.label == "Help"]


async def open_help(pilot: Pilot[None], key: str) -> str:
    """Its text."""
    await pilot.press(key)
    await until(pilot, lambda: isinstance(pilot.app.screen, HelpScreen), f"the help that {key} opens")
    return " ".join(screen_text(pilot.app).split())


async def test_every_dialog_has_help_and_is_as_it_was_after_it(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[job\n")
    makers = one_of_each(tmp_path)
    assert set(makers) == all_dialogs(), "a dialog is missing here"
    app = Asking()
    async with app.run_test(size=(100, 40)) as pilot:
        for kind, make in makers.items():
            dialog = make()
            await app.push_screen(dialog)
            if kind.__name__ == "JobFileScreen":
                await until(pilot, lambda: "1 error" in screen_text(app) and not app.workers._workers, "its look")
            await until(pilot, lambda dialog=dialog: dialog.focused or not dialog.focus_chain, "the focus")
            typing = isinstance(app.focused, Input | TextArea)
            await pilot.press("question_mark" if typing else "tab")
            before = state(dialog)
            assert app.screen is dialog and (not typing or "?" in str(before)), kind
            typing = isinstance(app.focused, Input | TextArea)
            key = "ctrl+right_square_bracket" if typing or kind is Confirm else "question_mark"
            await until(
                pilot, lambda typing=typing: ("^]" if typing else "?") in help_key(app), "the key that is shown"
            )
            bound = {b.binding.id for b in dialog.active_bindings.values()} & OWN
            if kind is Ask:  # Textual's box around them has these keys too, for where it scrolls
                bound |= {"dialog.previous", "dialog.next"}
            assert bound, kind
            text = await open_help(pilot, key)
            missing = [name for name in bound if HELP_OF[name] not in text]
            assert not missing and "In this dialog" in text, (kind, missing, text)
            shown, _ = of_dialog(dialog)
            keys = {key for actions in shown.values() for action in actions for key in action.keys.split(",")}
            for node, widgets in dialog._modal_binding_chain:
                for widget_key, binding in widgets:
                    named = widget_key in keys or dialog.app._check_action_state(binding.action, node) is False
                    assert named or widget_key not in WIDGET_KEYS, (kind, widget_key, binding, node)
            words = [action.help for actions in shown.values() for action in actions]
            assert HELP_OF["app.interrupt"] in text and not {"Press button.", "Submit.", "Select."} & set(words), words
            assert "Where the daemon is" not in text, "what works on the screen below, but not here"
            await pilot.press(key)
            await until(pilot, lambda dialog=dialog: app.screen is dialog, "the dialog")
            assert before == state(dialog), kind
            await app.pop_screen()


async def test_the_palette_opens_the_help_of_a_dialog() -> None:
    app = Asking()
    async with app.run_test(size=(100, 30)) as pilot:
        await app.push_screen(dialog := Confirm("Stop it?", "Stop", "Leave"))
        assert (await found_in_palette(pilot, "help"))[0] == "Help"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), "the help")
        assert "Leave things as they are." in screen_text(app)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is dialog, "the question")


@pytest.mark.parametrize("over", ["help", "command_palette"])
async def test_captions_that_are_written_under_the_help_close_their_own_dialog(
    tmp_path: Path, over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the help in its place, which would leave a dialog that answers nobody."""
    monkeypatch.setattr(clip_dialogs, "SLICE", 0.0)
    app, answers = Asking(), []
    async with app.run_test(size=(100, 30)) as pilot:
        dialog = one_of_each(tmp_path)[CaptionsDialog]()
        assert isinstance(dialog, CaptionsDialog)

        def write(_: list[CaptionChange]) -> Iterator[int]:
            getattr(app, f"action_{over}")()
            while app.screen is dialog or not app.screen.is_mounted:
                yield 1

        dialog.write_all = write  # type: ignore[assignment]
        below = app.screen
        await app.push_screen(dialog, answers.append)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: answers and app.screen is below, "the screen below")
        assert answers == [dialog.changes]


@pytest.mark.parametrize("columns", [40, *thorough(60), 80])
async def test_no_answer_of_a_dialog_is_cut(tmp_path: Path, columns: int) -> None:
    (tmp_path / "broken.toml").write_text("[job\n")
    for kind, make in one_of_each(tmp_path).items():
        app = Asking()
        async with app.run_test(size=(columns, 24)) as pilot:
            dialog = make()
            await app.push_screen(dialog)
            await until(pilot, lambda dialog=dialog: dialog.focused or not dialog.focus_chain, "the focus")
            for button in dialog.query(Button):
                button.scroll_visible(animate=False)
                await pilot.pause()
                around = [node.region for node in button.ancestors if isinstance(node, Widget)]
                whole = all(region.contains_region(button.region) for region in around)
                assert whole and cell_len(str(button.label)) <= button.content_region.width, (
                    f"{kind.__name__}: {button.label}\n{screen_text(app)}"
                )


async def test_what_keys_do_begins_in_one_column_under_every_heading() -> None:
    app = Asking()
    async with app.run_test(size=(120, 160)) as pilot:
        await app.push_screen(HelpScreen(of_screen("dashboard")))
        await pilot.pause()
        begins = {
            line.index(action.help[:30])
            for action in all_actions()
            for line in screen_text(app).splitlines()
            if action.help[:30] in line
        }
        assert len(begins) == 1, screen_text(app)
