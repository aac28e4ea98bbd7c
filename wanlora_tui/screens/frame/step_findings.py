"""What was found about one step of the wizard, each finding with the way to its field."""

from dataclasses import dataclass

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from presets.findings import Finding
from wanlora_tui.actions import bindings
from wanlora_tui.screens.frame.finding_text import entry
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Dialog


@dataclass
class Jump(Message):
    """Go to the field of a finding."""

    field: str


@dataclass
class Fix(Message):
    """Apply the fix of a finding."""

    finding: Finding


class _Findings(OptionList):
    BINDINGS = bindings("findings.jump", "list.down", "list.up", "list.top", "list.bottom")


class StepFindings(Dialog[Jump | Fix | None]):
    """Of one finding or more. Dismisses with what is to be done, or with None."""

    BINDINGS = bindings("findings.fix", "findings.close", "app.help")
    DEFAULT_CSS = """
    StepFindings { align: center middle; }
    StepFindings > Vertical {
        width: 90%; max-width: 100; height: auto; max-height: 90%; border: round $primary; padding: 0 1;
        background: $surface;
    }
    StepFindings _Findings, StepFindings _Findings:focus {
        height: auto; max-height: 1fr; border: none; padding: 0; background: $surface;
    }
    """

    def __init__(self, title: str, findings: list[Finding]) -> None:
        super().__init__()
        self.findings_title, self.findings = title, findings

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = self.findings_title
            yield _Findings(*(Option(entry(f)) for f in self.findings), markup=False)
        yield FittingFooter(compact=False)

    def on_mount(self) -> None:
        found = self.query_one(_Findings)
        found.focus()
        found.highlighted = 0

    def _current(self) -> Finding | None:
        index = self.query_one(_Findings).highlighted
        return self.findings[index] if index is not None and index < len(self.findings) else None

    @on(OptionList.OptionSelected)
    def _jump(self) -> None:
        finding = self._current()
        if finding is not None:
            self.dismiss(Jump(finding.field))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return any(f.set for f in self.findings) if action == "fix" else super().check_action(action, parameters)

    def action_fix(self) -> None:
        finding = self._current()
        if finding is None:
            return
        if finding.set:
            self.dismiss(Fix(finding))
        else:
            self.notify(f"This one needs you: {finding.fix}", severity="warning")

    def action_close(self) -> None:
        self.dismiss(None)
