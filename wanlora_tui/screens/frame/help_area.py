"""The lines below the wizard's step: what the focused field means, or what the step wants."""

from typing import Any

from textual.markup import escape
from textual.screen import Screen
from textual.widgets import Static

from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.draft.steps import STEPS, position
from wanlora_tui.widgets.field_input import FieldInput


class HelpingScreen(Screen[Any]):
    """A screen over a WizardState with a `#help-area` around a `#help-text`."""

    state: WizardState

    def __init__(self) -> None:
        super().__init__()
        self._said = ("", "")  # title and text

    def show_help(self, focused: object, step: str) -> None:
        row = (
            next((n for n in focused.ancestors if isinstance(n, FieldInput)), None)
            if hasattr(focused, "ancestors")
            else None
        )
        here = STEPS[position(step)]
        hint = (self.state.draft.copy_of and here.hint_of_copy) or here.hint
        said = (row.help_title(), row.help_lines()) if row is not None else (here.title, hint)
        if said != self._said:
            self._said = said
            area = self.query_one("#help-area")
            area.border_title = escape(said[0])
            self.query_one("#help-text", Static).update(said[1])
            area.scroll_home(animate=False)
