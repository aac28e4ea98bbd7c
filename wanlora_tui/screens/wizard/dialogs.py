"""Questions and help pages of the wizard."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Button, Static

from presets.text import escaped
from wanlora_tui.actions import Action, all_actions, bindings
from wanlora_tui.draft.steps import Step
from wanlora_tui.screens.help import key_table, key_width
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.pasting import typed_by
from wanlora_tui.widgets.redraw_throttle import Answers, Dialog


class Ask(Dialog[str]):
    """A question with a few answers. Dismisses with the answer's key, or with "" when it is cancelled."""

    BINDINGS = bindings("dialog.cancel", "dialog.previous", "dialog.next", "app.help")
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (72, "-wide")]  # noqa: RUF012  (Textual's own declaration)
    DEFAULT_CSS = """
    Ask { align: center middle; }
    Ask > VerticalScroll {
        width: 66; max-width: 94%; height: auto; max-height: 90%; border: round $primary; padding: 1 2;
        background: $surface;
    }
    Ask #ask-text { height: auto; margin-bottom: 1; }
    Ask Button { margin-right: 2; }
    Ask.-narrow > VerticalScroll { padding: 0 1; }
    """

    def __init__(self, title: str, text: str, answers: dict[str, str]) -> None:
        super().__init__()
        self.ask_title, self.text, self.answers = title, text, answers

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False) as box:  # the answers are reached however short the terminal is
            box.border_title = self.ask_title
            yield Static(escaped(self.text), id="ask-text", markup=False)
            with Answers():
                for i, (key, label) in enumerate(self.answers.items()):
                    yield Button(label, id=f"answer-{key}", variant="primary" if i == 0 else "default", compact=True)
        yield FittingFooter()

    @on(Button.Pressed)
    def _answered(self, event: Button.Pressed) -> None:
        assert event.button.id is not None
        self.dismiss(event.button.id.removeprefix("answer-"))

    def action_cancel(self) -> None:
        self.dismiss("")


async def close_over(screen: Screen[Any]) -> None:
    """Close what lies over a screen that is about to go on by itself: help, the palette, a question."""
    while screen.app.screen is not screen:
        await screen.app.pop_screen()


class _Page(VerticalScroll):
    BINDINGS = bindings("text.down", "text.up", "text.top", "text.bottom")


class StepHelp(Dialog[None]):
    """What a step is for, and the wizard's keys."""

    BINDINGS = bindings("page.close")
    DEFAULT_CSS = """
    StepHelp { align: center middle; }
    StepHelp > _Page {
        width: 90%; max-width: 100; height: 90%; border: round $primary; padding: 1 2; background: $surface;
    }
    StepHelp Static { height: auto; margin-bottom: 1; }
    """

    def __init__(self, step: Step, offered: set[str], *, typing: bool) -> None:
        """`offered`: ids of the step's actions. `typing`: a text input has the focus, which takes letters and brackets
        itself."""
        super().__init__()
        self.step, self.typing = step, typing
        self.actions = [a for a in all_actions() if a.id in offered or a.id.partition(".")[0] in ("form", "list")]

    def compose(self) -> ComposeResult:
        with _Page() as page:
            page.border_title = f"Help · {self.step.title}"
            yield Static(self.step.help, markup=False)
            yield Static("^P or : finds every action and every field by a word of it.", markup=False)
            if not self.typing:
                yield Static(key_table(self.actions, key_width(self.actions)))
            else:
                kept, typed = (list(self._with_keys(typed=typed)) for typed in (False, True))
                width = key_width(kept + typed)
                yield Static(key_table(kept, width))
                yield Static("These are for lists and tables: in the text input that has the focus they are typed.")
                yield Static(key_table(typed, width))
        yield FittingFooter(compact=False)

    def _with_keys(self, *, typed: bool) -> Iterator[Action]:
        """The actions with only those of their keys that a text input takes for text, or only the others."""
        for action in self.actions:
            keys = [k for k in action.keys.split(",") if bool(typed_by(k)) == typed]
            if keys:
                yield replace(action, keys=",".join(keys))

    def action_close(self) -> None:
        self.dismiss(None)
