"""All keys of the screen below, and of the whole app, read from the registry of actions."""

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from wanlora_tui.actions import Action, all_actions, bindings

GROUPS = {
    "app": "Everywhere",
    "jobs": "Jobs",
    "dashboard": "Dashboard",
    "compare": "Comparing previews",
    "list": "In lists",
    "text": "In texts",
}
NAMES = {
    "question_mark": "?",
    "escape": "Esc",
    "enter": "Enter",
    "space": "Space",
    "tab": "Tab",
    "backspace": "Backspace",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "up": "Up",
    "down": "Down",
    "left": "Left",
    "right": "Right",
}


def key_text(keys: str) -> str:
    """`f1,question_mark` as `F1 ?`."""
    return " ".join(
        NAMES.get(k, k.replace("ctrl+", "^") if len(k) != 2 or k[0] != "f" else k.upper()) for k in keys.split(",")
    )


def groups(first: str) -> dict[str, list[Action]]:
    """Actions by heading: those of the screen, then what works everywhere, then moving about (in tables as in lists).
    Dialogs explain themselves."""
    out: dict[str, list[Action]] = {}
    for group in (first, "app", "list", "text"):
        for action in all_actions():
            if action.id.partition(".")[0] == group:
                out.setdefault(GROUPS[group], []).append(action)
    return out


def key_table(actions: list[Action]) -> Table:
    """One row for each action: its keys, and what it does, broken within its own column."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=9)
    table.add_column()
    for action in actions:
        table.add_row(Text(key_text(action.keys), "bold"), action.help)
    return table


class HelpScreen(ModalScreen[None]):
    """`first` is the group of the screen that asked: its keys come first."""

    BINDINGS = bindings("help.close")

    def __init__(self, first: str) -> None:
        super().__init__()
        self._first = first

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help-box"):
            for heading, actions in groups(self._first).items():
                yield Static(heading, classes="help-heading")
                yield Static(key_table(actions))
            yield Static(
                "Ctrl+P opens the command palette: every action by name, and the colour themes.", classes="help-heading"
            )

    def on_mount(self) -> None:
        self.query_one("#help-box").focus()

    def action_close(self) -> None:
        self.dismiss()
