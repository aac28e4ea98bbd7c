"""What can be changed while a job trains, as a small form. Nothing is sent before every value is good."""

from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, Static

from presets.errors import JobError
from presets.job.diff import LIVE_FIELDS, live_value
from presets.job.fields import field_of
from presets.job.preview_settings import PRESETS
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import setting_text
from wanlora_tui.widgets.field_input import FieldText, problem_text, range_text
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Dialog

EXPERTS = {"multistage.high.lr": "high noise", "multistage.low.lr": "low noise"}
LEFT_OUT = {**dict.fromkeys(EXPERTS, "as above"), "sample.shift": f"{PRESETS['custom'].shift:g}"}  # what it means


def as_typed(field: str, value: Any) -> str:
    """A value as it stands in the form: `1e-4`, `250`; "" for one that is left out."""
    return "" if value is None else setting_text(field, value)


class ChangeScreen(Dialog[list[tuple[str, str]] | None]):
    """Dismisses with (field, text) of every value that was changed; None when there is none, or it was left."""

    BINDINGS = bindings("change.apply", "dialog.cancel", "app.help")

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        """`settings`: the values of now, by field."""
        super().__init__()
        self._name, self._now = name, {field: as_typed(field, settings.get(field)) for field in LIVE_FIELDS}

    def compose(self) -> ComposeResult:
        with Vertical(id="change-box"):
            yield Static(
                f"Change {self._name} while it trains: Enter applies, Esc leaves", id="change-title", markup=False
            )
            for field in LIVE_FIELDS:
                about = field_of(field)
                with Horizontal(classes="change-row"):
                    yield Static(
                        about.label + (f", {EXPERTS[field]}" if field in EXPERTS else ""),
                        classes="change-label",
                        markup=False,
                    )
                    yield FieldText(
                        self._now[field],
                        placeholder=LEFT_OUT.get(field, ""),
                        compact=True,
                        name=field,
                        classes="change-input",
                    )
                    # the placeholder says that, and 80 columns have no room for both
                    takes = range_text(about).replace(" or left out", "")
                    yield Static(takes, classes="change-range", markup=False)
            yield Static(id="change-problem", markup=False)
        yield FittingFooter(show_command_palette=False)

    def on_mount(self) -> None:
        self.query(Input).first().focus()
        self._look()

    def problems(self) -> dict[str, str]:
        """What is wrong, by field."""
        found = {}
        for field, text in self._typed().items():
            try:
                live_value(field, text)
            except JobError as e:
                found[field] = problem_text(e)
        return found

    def _typed(self) -> dict[str, str]:
        return {str(i.name): i.value.strip() for i in self.query(Input)}

    def changed(self) -> list[tuple[str, str]]:
        """Call it when there are no problems. A value that was only written otherwise is not changed."""
        return [
            (field, text) for field, text in self._typed().items() if self._as_shown(field, text) != self._now[field]
        ]

    @staticmethod
    def _as_shown(field: str, text: str) -> str:
        return as_typed(field, live_value(field, text))

    @on(Input.Changed)
    def _look(self) -> None:
        found = self.problems()
        for row in self.query(Input):
            row.set_class(row.name in found, "-wrong")
        lines = [f"✗ {field}: {text}" for field, text in found.items()]
        lines = lines or [
            f"● {field}: {self._now[field] or 'left out'} -> {self._as_shown(field, text) or 'left out'}"
            for field, text in self.changed()
        ]
        self.query_one("#change-problem", Static).update(
            "\n".join(lines) or "It counts from the next step on. A resume repeats it at the same step."
        )

    @on(Input.Submitted)
    def _entered(self) -> None:
        self.action_apply()

    def action_apply(self) -> None:
        if self.problems():
            self.app.bell()
            return
        self.dismiss(self.changed() or None)

    def action_cancel(self) -> None:
        self.dismiss(None)
