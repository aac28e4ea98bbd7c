"""A longer label is seen whole at once."""

from textual.app import App, ComposeResult
from textual.widgets import Button

from tests.helpers.interface.wizard_pilot import screen_text
from wanlora_tui.screens.frame.button_label import set_label


class Labelled(App[None]):
    CSS = "Button { min-width: 1; }"

    def compose(self) -> ComposeResult:
        yield Button("Leave it out x", compact=True)


async def test_a_longer_label_is_seen_whole() -> None:
    app = Labelled()
    async with app.run_test() as pilot:
        button = app.query_one(Button)
        for label in ("Take it x", "Leave it out x"):
            set_label(button, label)
            await pilot.pause()
            assert label in screen_text(app)
            button.refresh(layout=True)  # as when something beside it changes
            await pilot.pause()
