"""What all steps of the wizard are made of."""

import pytest
from textual.app import App, ComposeResult
from textual.widgets import Static

from tests.helpers.interface.wizard_pilot import until
from wanlora_tui.screens.wizard.pane import Choices


class ListApp(App[None]):
    CSS = "Choices { height: auto; border: none; padding: 0; }"

    def compose(self) -> ComposeResult:
        yield Choices("a line that is about to be much shorter, or much longer " * 2, compact=True)
        yield Static("below")


@pytest.mark.usefixtures("drawn_when_looked_at")
async def test_a_list_is_as_high_as_the_lines_that_were_replaced() -> None:
    async with ListApp().run_test(size=(60, 10)) as pilot:
        listed, below = pilot.app.query_one(Choices), pilot.app.query_one(Static)
        for line, height in (("short", 1), ("long " * 30, 3), ("short", 1)):
            listed.replace_option_prompt_at_index(0, line)
            await until(pilot, lambda h=height: below.region.y == h, f"{height} lines")
