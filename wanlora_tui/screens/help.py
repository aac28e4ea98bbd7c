"""All keys of the screen or dialog below, and of the whole app, read from the registry of actions."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import SelectionList, Static

from wanlora_tui.actions import Action, all_actions, bindings
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Dialog

GROUPS = {
    "app": "Everywhere",
    "jobs": "Jobs",
    "dashboard": "Dashboard",
    "plot": "In the plot",
    "compare": "Comparing previews",
    "log": "Log",
    "picture": "A preview, full screen",
    "sheet": "Contact sheet",
    "film": "Previews as films",
    "preview": "In the preview's pane",
    "list": "In lists",
    "text": "In texts",
}
FILMS = {"compare": ("film",), "picture": ("compare", "film"), "sheet": ("film",), "dashboard": ("preview",)}
# what a screen's help takes from another group and the screen does not have
LACKING = {"picture": {f"compare.{name}" for name in ("more", "fewer", "pin", "open", "sheet", "close")}}
IN_DIALOG = "In this dialog"
# what Enter, Space and Tab do in a dialog's buttons, lists and fields, by the widgets' own names of it
WIDGET_KEYS = ("enter", "space", "tab")
WORDS = {
    "press": "Press the button.",
    "submit": "Take what is typed.",
    "select": "Take the line under the cursor.",
    "select_cursor": "Take the line under the cursor.",
    "toggle_node": "Open or close the folder under the cursor.",
    "show_overlay": "Open the list of choices.",
    "app.focus_next": "Go to the next field, list or button.",
}
MOST_KEYS = 12  # columns; more of them are broken, so that a small terminal has room for what they do
TICK = "Tick the line under the cursor, or take its tick away."
NAMES = {
    "comma": ",",
    "full_stop": ".",
    "plus": "+",
    "equals_sign": "=",
    "minus": "-",
    "home": "Home",
    "end": "End",
    "question_mark": "?",
    "slash": "/",
    "colon": ":",
    "escape": "Esc",
    "enter": "Enter",
    "space": "Space",
    "tab": "Tab",
    "backspace": "Backspace",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "shift+left": "Shift+Left",
    "shift+right": "Shift+Right",
    "exclamation_mark": "!",
    "ctrl+underscore": "^_",
    "ctrl+slash": "^/",
    "ctrl+backslash": "^\\",
    "ctrl+right_square_bracket": "^]",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "up": "Up",
    "down": "Down",
    "left": "Left",
    "right": "Right",
}


def key_text(keys: str) -> str:
    """`question_mark,f1` as `? F1`."""
    return " ".join(NAMES.get(key) or _as_on_buttons(key) for key in keys.split(","))


def _as_on_buttons(key: str) -> str:
    is_large = key.startswith("ctrl+") or (len(key) == 2 and key[0] == "f")
    return key.replace("ctrl+", "^").upper() if is_large else key


def of_screen(first: str) -> dict[str, list[Action]]:
    """Actions by heading: those of the screen, whose group that is, then what works everywhere, then moving about (in
    tables as in lists)."""
    out: dict[str, list[Action]] = {}
    beside = (*FILMS.get(first, ()), *(["plot"] if first == "dashboard" else []))
    for group in (first, *beside, "app", "list", "text"):
        for action in all_actions():
            if action.id.partition(".")[0] == group and action.id not in LACKING.get(first, ()):
                out.setdefault(GROUPS[group], []).append(action)
    return out


def of_dialog(dialog: Screen[object]) -> tuple[dict[str, list[Action]], set[str]]:
    """Actions by heading with the keys that work in a dialog as it is now (letters are typed
    where a text field has the focus), and ids of those that would do nothing."""
    keys: dict[str, list[str]] = {}
    plain: dict[str, str] = {}  # key -> words of the widget
    refused, taken = set(), set()
    for node, bound in dialog._modal_binding_chain:
        for key, binding in bound:
            offered = dialog.app._check_action_state(binding.action, node)
            if offered is False or key in taken:
                continue
            if binding.id:  # also one that a box around it would take, were there something to scroll
                taken.add(key)
                keys.setdefault(binding.id, []).append(key)
                if not offered:
                    refused.add(binding.id)
            elif key in WIDGET_KEYS and binding.action in WORDS:
                ticks = isinstance(node, SelectionList) and binding.action == "select"
                plain.setdefault(key, TICK if ticks else WORDS[binding.action])
    for key, binding in dialog.app._bindings:  # these are heard over dialogs
        if binding.priority and binding.id:
            keys.setdefault(binding.id, []).append(key)
    out: dict[str, list[Action]] = {IN_DIALOG: []}
    for action in all_actions():
        if action.id in keys:
            heading = GROUPS.get(action.id.partition(".")[0].replace("table", "list"), IN_DIALOG)
            out.setdefault(heading, []).append(replace(action, keys=",".join(keys[action.id])))
    for key in [key for key in plain if key not in taken]:
        out[IN_DIALOG].append(Action(id="", keys=key, action="", label="", help=plain[key]))
    return out, refused


def key_width(actions: Iterable[Action]) -> int:
    """Columns for the keys of all these, for tables that stand one below the other."""
    return min(MOST_KEYS, max(cell_len(key_text(action.keys)) for action in actions))


def key_table(actions: list[Action], width: int, refused: Collection[str] = ()) -> Table:
    """One row for each action: its keys in `width` columns, and what it does, broken within its own column. `refused`:
    ids of those that would do nothing now."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=width)
    table.add_column()
    for action in actions:
        if action.id in refused:
            table.add_row(Text(key_text(action.keys), "dim"), Text(f"{action.help} (not now)", "dim"))
        else:
            table.add_row(Text(key_text(action.keys), "bold"), Text(action.help))
    return table


class HelpScreen(Dialog[None]):
    """`shown`: actions by heading, as `of_screen` or `of_dialog` finds them. `refused`: ids of those that would do
    nothing now."""

    BINDINGS = bindings("help.close")

    def __init__(self, shown: dict[str, list[Action]], refused: Collection[str] = ()) -> None:
        super().__init__()
        self._shown, self._refused = shown, refused

    def compose(self) -> ComposeResult:
        width = key_width([action for actions in self._shown.values() for action in actions])
        with VerticalScroll(id="help-box"):
            for heading, actions in self._shown.items():
                yield Static(heading, classes="help-heading")
                yield Static(key_table(actions, width, self._refused))
            yield Static(
                "Ctrl+P or : opens the command palette: every action by name, and the colour themes.",
                classes="help-heading",
            )
        yield FittingFooter(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#help-box").focus()

    def action_close(self) -> None:
        self.dismiss()
