"""Questions and help pages of the wizard."""

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Static

from wanlora_tui.actions import all_actions, bindings
from wanlora_tui.draft.steps import Step
from wanlora_tui.screens.help import key_table


class Ask(ModalScreen[str]):
    """A question with a few answers. Dismisses with the answer's key, or with "" when it is cancelled."""

    BINDINGS = bindings("dialog.cancel", "dialog.previous", "dialog.next")
    DEFAULT_CSS = """
    Ask { align: center middle; }
    Ask > Vertical {
        width: 66; max-width: 94%; height: auto; max-height: 90%; border: round $primary; padding: 1 2;
        background: $surface;
    }
    Ask #ask-text { height: auto; margin-bottom: 1; }
    Ask Horizontal { height: auto; }
    Ask Button { margin-right: 2; }
    """

    def __init__(self, title: str, text: str, answers: dict[str, str]) -> None:
        super().__init__()
        self.ask_title, self.text, self.answers = title, text, answers

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = self.ask_title
            yield Static(self.text, id="ask-text", markup=False)
            with Horizontal():
                for i, (key, label) in enumerate(self.answers.items()):
                    yield Button(label, id=f"answer-{key}", variant="primary" if i == 0 else "default", compact=True)

    @on(Button.Pressed)
    def _answered(self, event: Button.Pressed) -> None:
        assert event.button.id is not None
        self.dismiss(event.button.id.removeprefix("answer-"))

    def action_cancel(self) -> None:
        self.dismiss("")


class _Page(VerticalScroll):
    BINDINGS = bindings("text.down", "text.up", "text.top", "text.bottom")


class StepHelp(ModalScreen[None]):
    """What a step is for, and the wizard's keys."""

    BINDINGS = bindings("dialog.cancel")
    DEFAULT_CSS = """
    StepHelp { align: center middle; }
    StepHelp > _Page {
        width: 90%; max-width: 100; height: 90%; border: round $primary; padding: 1 2; background: $surface;
    }
    StepHelp Static { height: auto; margin-bottom: 1; }
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def compose(self) -> ComposeResult:
        with _Page() as page:
            page.border_title = f"Help · {self.step.title}"
            yield Static(self.step.help, markup=False)
            yield Static("Letters and brackets work outside text inputs; F-keys work everywhere.", markup=False)
            yield Static(key_table([a for a in all_actions() if a.id.partition(".")[0] in ("wizard", "form", "list")]))
        yield Footer()

    def action_cancel(self) -> None:
        self.dismiss(None)
