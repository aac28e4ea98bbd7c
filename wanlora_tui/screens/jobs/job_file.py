"""A job file that lies here already: what is wrong with it, and then it is queued as it is, or opened in the wizard.

The wizard's own last step is wanlora_tui.screens.wizard.review's.
"""

from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.markup import escape
from textual.message import Message
from textual.widgets import Button, Static

from presets.errors import JobError
from presets.findings import Finding, of_job_error
from presets.job.toml_file import default_out, load_job
from presets.look import Look, LookEnded
from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Answers, Dialog

WIDTH = 72  # of the text of findings


class Checked(Message):
    """What the rules say of the file, as text; `opens`: it is a job that the wizard can show."""

    def __init__(self, text: str, *, errors: bool, opens: bool) -> None:
        super().__init__()
        self.text, self.errors, self.opens = text, errors, opens


class FindingsPage(VerticalScroll):
    BINDINGS = bindings("text.down", "text.up", "text.top", "text.bottom")


class JobFileScreen(Dialog[str]):
    """Dismisses with "submit", "wizard", or "" to leave it alone. `daemon_answers`: else it cannot be submitted now."""

    BINDINGS = bindings("dialog.cancel", "app.help")
    DEFAULT_CSS = """
    JobFileScreen { align: center middle; }
    JobFileScreen > Vertical {
        width: 80; max-width: 98%; height: auto; max-height: 94%; border: round $primary; padding: 0 1;
        background: $surface;
    }
    JobFileScreen FindingsPage { height: auto; max-height: 60vh; }
    JobFileScreen Static { height: auto; }
    JobFileScreen Answers { margin-top: 1; }
    JobFileScreen Button { margin-right: 2; }
    """

    def __init__(self, path: Path, *, daemon_answers: bool) -> None:
        super().__init__()
        self._path, self._daemon_answers, self._found = path, daemon_answers, Look()

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = escape(escaped(str(self._path)))
            with FindingsPage():
                yield Static("… looking at the job and its clips", id="job-file-findings", markup=False)
            with Answers():
                yield Button("Submit", id="submit", variant="primary", compact=True, disabled=True)
                yield Button("Open in the wizard", id="wizard", compact=True, disabled=True)
                yield Button("Leave it (Esc)", id="cancel", compact=True)
        yield FittingFooter(show_command_palette=False, compact=False)

    def on_mount(self) -> None:
        self.query_one("#cancel").focus()
        self._check()

    def on_unmount(self) -> None:
        self._found.end()

    @work(thread=True, exit_on_error=False)
    def _check(self) -> None:
        from presets.facts.gather import gather
        from presets.rules.check import check_job, has_errors, render

        try:
            job = load_job(self._path)
        except JobError as e:
            self._tell(of_job_error(e), render(of_job_error(e), width=WIDTH), errors=True, opens=False)
            return
        try:
            out = default_out(self._path)
            facts = gather(job, self._path.resolve().parent, out=out, scenes=False, look=self._found)
        except LookEnded:
            return
        findings = check_job(job, facts)
        self._tell(findings, render(findings, width=WIDTH), errors=has_errors(findings), opens=True)

    def _tell(self, findings: list[Finding], text: str, *, errors: bool, opens: bool) -> None:
        self.post_message(Checked(text if findings else "Nothing stands in its way.", errors=errors, opens=opens))

    @on(Checked)
    def _checked(self, event: Checked) -> None:
        first = "It cannot be trained as it is: the errors must be mended first.\n\n" if event.errors else ""
        if not self._daemon_answers:
            first += "It cannot be submitted now: the daemon does not answer.\n\n"
        self.query_one("#job-file-findings", Static).update(first + escaped(event.text))
        submit, wizard = self.query_one("#submit", Button), self.query_one("#wizard", Button)
        submit.disabled, wizard.disabled = event.errors or not self._daemon_answers, not event.opens
        answer = next((button for button in (submit, wizard) if not button.disabled), self.query_one("#cancel"))
        answer.focus()

    @on(Button.Pressed)
    def _answered(self, event: Button.Pressed) -> None:
        self.dismiss("" if event.button.id == "cancel" else str(event.button.id))

    def action_cancel(self) -> None:
        self.dismiss("")
