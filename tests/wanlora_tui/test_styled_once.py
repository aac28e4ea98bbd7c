"""What is new on a screen has its styles looked up when it comes there, and the classes that it got meanwhile count."""

import asyncio
from collections import Counter

from textual.containers import Vertical
from textual.widgets import Button, Static

from wanlora_tui.styled_once import StyledOnce


class Row(Vertical):
    DEFAULT_CSS = """
    Row { height: 1; }
    Row.-open, Row.-wide { height: 3; }
    Row.-wide .hidden { display: none; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_class("-open")

    def compose(self):
        yield Static("always", classes="shown")
        yield Static("hidden", classes="hidden")
        yield Button("press", compact=True)

    def on_mount(self) -> None:
        self.remove_class("-open")
        self.add_class("-wide")


def test_new_widgets_are_styled_twice_at_most_and_as_their_last_classes_say() -> None:
    async def run() -> None:
        app = StyledOnce()
        async with app.run_test():
            looked_up, apply = Counter(), app.stylesheet.apply

            def counted(node, **how) -> None:
                looked_up[node] += 1
                apply(node, **how)

            app.stylesheet.apply = counted
            row = Row()
            await app.mount(row)
            assert row.styles.height.value == 3, "before who waits for the mount goes on"
            assert not row.query_one(".hidden").display and row.query_one(".shown").display
            assert {node: looked_up[node] for node in (row, *row.query("*")) if looked_up[node] > 2} == {}
            row.remove_class("-wide")
            assert row.styles.height.value == 1, "of what stands there, at once"
            assert row.query_one(".hidden").display

    asyncio.run(run())
