"""What stands on the screen while a job is handed to the daemon."""

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from wanlora_tui.actions import bindings


class Launching(ModalScreen[bool]):
    """Keeps the job as it is until the answer is there. Dismisses with True when its user stops waiting."""

    BINDINGS = bindings("launch.cancel")
    DEFAULT_CSS = """
    Launching { align: center middle; }
    Launching > Vertical { width: 66; max-width: 94%; height: auto; border: round $primary; padding: 1 2; background: $surface; }
    Launching Static { height: auto; }
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.job_name, self.state = name, ""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = f"Launching {self.job_name}"
            yield Static(self.state, id="launch-state", markup=False)
        yield Footer()

    def say(self, text: str) -> None:
        self.state = text
        for line in self.query("#launch-state").results(Static):  # none before it is shown
            line.update(text)

    def action_cancel(self) -> None:
        self.dismiss(True)
