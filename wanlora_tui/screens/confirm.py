"""A question before something that cannot be taken back."""

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Button, Static

from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Answers, Dialog


class Confirm(Dialog[bool]):
    """Dismisses with True for yes. `y` and `n` answer; so do the buttons."""

    BINDINGS = bindings("confirm.yes", "confirm.no", "app.help")
    VERTICAL_BREAKPOINTS = [(0, "-low"), (18, "-high")]  # noqa: RUF012  (Textual's own declaration)

    def __init__(self, question: str, yes: str, no: str) -> None:
        super().__init__()
        self._question, self._yes, self._no = question, yes, no

    def compose(self) -> ComposeResult:
        with Vertical(id="confirm-box"):
            yield Static(escaped(self._question), id="confirm-question", markup=False)
            with Answers(id="confirm-buttons"):
                yield Button(f"{self._no} (n)", id="no")
                yield Button(f"{self._yes} (y)", id="yes", variant="warning")
        yield FittingFooter(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)
