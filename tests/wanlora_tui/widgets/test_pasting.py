"""Whose selection it is: the user's, or that of the focus that has come to a field."""

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.widgets import Button

from tests.helpers.interface.wizard_pilot import until
from wanlora_tui.widgets.pasting import OneLine, typed_by


class Form(App[None]):
    BINDINGS = [("ctrl+x", "remove")]  # noqa: RUF012  (Textual's own declaration)

    def compose(self) -> ComposeResult:
        yield OneLine("a castle", id="first")
        yield OneLine("a vase", id="second")

    def shown(self) -> str:
        """The action that the footer shows for the key."""
        return self.screen.active_bindings["ctrl+x"].binding.action


async def test_a_terminal_that_gets_its_focus_back_leaves_the_selection_to_its_user() -> None:
    app = Form()
    async with app.run_test() as pilot:
        field = app.query_one("#first", OneLine)
        await until(pilot, lambda: not field.selection.is_empty, "the text, selected")
        field.post_message(events.Focus(from_app_focus=True))
        await pilot.pause()
        assert not field.check_action("cut", ()), "nobody has selected it"
        await pilot.press("home", "shift+end")
        field.post_message(events.Focus(from_app_focus=True))
        await pilot.pause()
        assert field.check_action("cut", ())


async def test_a_key_that_selects_nothing_does_not_make_the_selection_the_users() -> None:
    app = Form()
    async with app.run_test() as pilot:
        field = app.query_one("#first", OneLine)
        await until(pilot, lambda: not field.selection.is_empty, "the text, selected")
        await pilot.press("f9")
        assert not field.selection.is_empty and not field.check_action("cut", ())
        await pilot.press("ctrl+shift+a")
        assert field.check_action("cut", ())


async def test_the_footer_follows_whose_selection_it_is() -> None:
    app = Form()
    async with app.run_test() as pilot:
        field = app.query_one("#first", OneLine)
        await until(pilot, lambda: not field.selection.is_empty, "the text, selected")
        shown: list[str] = []
        app.screen.bindings_updated_signal.subscribe(field, lambda _: shown.append(app.shown()), immediate=True)
        for keys, action in {("home", "shift+right"): "cut", ("end",): "remove"}.items():
            await pilot.press(*keys)
            await until(pilot, lambda action=action: shown and shown[-1] == action, f"{action} in the footer")


@pytest.mark.parametrize("key", ["slash", "backslash", "minus", "plus", "at", "underscore", "full_stop", "comma", "a"])
async def test_a_key_that_a_text_takes_is_no_key_of_what_is_around(key: str) -> None:
    """In a footer or a help it would be listed where it is typed."""

    class Around(App[None]):
        BINDINGS = [(key, "remove")]  # noqa: RUF012

        def compose(self) -> ComposeResult:
            yield OneLine("a castle")
            yield Button("No text")

    app = Around()
    async with app.run_test() as pilot:
        await until(pilot, lambda: isinstance(app.focused, OneLine), "the text")
        assert key not in app.screen.active_bindings and len(typed_by(key)) == 1
        await pilot.press("tab")
        assert key in app.screen.active_bindings


@pytest.mark.parametrize("key", ["ctrl+slash", "ctrl+a", "escape", "enter", "f1", "tab", "up"])
def test_other_keys_type_nothing(key: str) -> None:
    assert typed_by(key) == ""
