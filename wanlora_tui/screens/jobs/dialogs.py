"""Small questions about jobs: a line of text, and which of the ended ones may go."""

from collections.abc import Callable, Collection

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Button, Input, SelectionList, Static
from textual.widgets.selection_list import Selection

from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import count, state_text
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.pasting import OneLine
from wanlora_tui.widgets.redraw_throttle import Answers, Dialog

GONE = ("done", "cancelled")  # what goes unless the user chooses otherwise: it cannot be resumed, or was given up
STYLE = """
    {0} {{ align: center middle; }}
    {0} > Vertical {{
        width: 66; max-width: 96%; height: auto; max-height: 96%; border: round $primary; padding: 0 1;
        background: $surface;
    }}
    {0} Static {{ height: auto; }}
    {0} Input {{ margin: 0 0 1 0; }}
    {0} .dialog-problem {{ color: $text-error; }}
    {0} Answers {{ margin-top: 1; }}
    {0} Button {{ margin-right: 2; }}
"""


class AskText(Dialog[str | None]):
    """Dismisses with what was entered, or None. `wrong` says why a text cannot be taken, "" when it can."""

    BINDINGS = bindings("dialog.cancel", "app.help")
    DEFAULT_CSS = STYLE.format("AskText")

    def __init__(self, title: str, hint: str, value: str, take: str, *, wrong: Callable[[str], str]) -> None:
        super().__init__()
        self._title, self._hint, self._value, self._take, self._wrong = title, hint, value, take, wrong

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = escaped(self._title).replace("[", r"\[")
            yield Static(escaped(self._hint), markup=False)
            yield OneLine(self._value, compact=True, id="asked-text")
            yield Static("", id="asked-problem", classes="dialog-problem", markup=False)
            with Answers():
                yield Button(f"{self._take} (Enter)", id="take", variant="primary", compact=True)
                yield Button("Cancel (Esc)", id="cancel", compact=True)
        yield FittingFooter(show_command_palette=False, compact=False)

    @on(Input.Changed)
    def _typed(self) -> None:
        self.query_one("#asked-problem", Static).update("")

    @on(Input.Submitted)
    @on(Button.Pressed, "#take")
    def _entered(self) -> None:
        text = self.query_one(OneLine).value.strip()
        if problem := self._wrong(text):
            self.query_one("#asked-problem", Static).update(f"✗ {escaped(problem)}")
        else:
            self.dismiss(text)

    @on(Button.Pressed, "#cancel")
    def action_cancel(self) -> None:
        self.dismiss(None)


class AskEnded(Dialog[list[str] | None]):
    """Which ended jobs are to go from the list, by their state. Those that cannot be resumed are chosen at first."""

    BINDINGS = bindings("dialog.cancel", "list.down", "list.up", "app.help")
    DEFAULT_CSS = (
        STYLE.format("AskEnded")
        + """
    AskEnded SelectionList { height: auto; border: none; padding: 0; background: $surface; }
"""
    )

    def __init__(self, counts: dict[str, int]) -> None:
        """`counts`: of each state of ended jobs that there is."""
        super().__init__()
        self._counts = counts

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Remove ended jobs from the list"
            yield Static("Their run folders stay, with all that is in them. Space chooses which go.\n", markup=False)
            yield SelectionList(
                *(Selection(self._words(state, GONE), state, state in GONE) for state in self._counts),
                compact=True,
            )
            with Answers():
                yield Button("", id="take", variant="warning", compact=True)
                yield Button("Keep all (Esc)", id="cancel", compact=True)
        yield FittingFooter(show_command_palette=False, compact=False)

    def _words(self, state: str, chosen: Collection[str]) -> str:
        number = self._counts[state]
        verb = ("goes" if number == 1 else "go") if state in chosen else ("stays" if number == 1 else "stay")
        return f"{state_text(state)}: {count(number, 'job')} {verb}"

    def on_mount(self) -> None:
        self.query_one(SelectionList).focus()
        self._count()

    @on(SelectionList.SelectedChanged)
    def _count(self) -> None:
        listed = self.query_one(SelectionList)
        number = sum(self._counts[state] for state in listed.selected)
        for i, state in enumerate(self._counts):  # the box before it differs by its colour alone
            listed.replace_option_prompt_at_index(i, self._words(state, listed.selected))
        button = self.query_one("#take", Button)
        button.label, button.disabled = f"Remove {count(number, 'job')}", not number

    @on(Button.Pressed, "#take")
    def _take(self) -> None:
        self.dismiss(list(self.query_one(SelectionList).selected))

    @on(Button.Pressed, "#cancel")
    def action_cancel(self) -> None:
        self.dismiss(None)
