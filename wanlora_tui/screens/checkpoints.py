"""The checkpoints that a run can go back to: when each was written, the losses there, its previews.

They are listed by presets.runs.checkpoints; going back is asked in wanlora_tui.screens.resume.
"""

import time
from pathlib import Path

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import DataTable, Static

from presets.runs.checkpoints import StoredCheckpoint, best_text
from presets.text import escaped, human, loss_text
from wanlora_tui.actions import bindings
from wanlora_tui.output.far_words import shown_path
from wanlora_tui.output.formatting import held_out_text
from wanlora_tui.output.queue_words import clock_time
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Dialog

COLUMNS = ("STEP", "WRITTEN", "HIGH LOSS", "LOW LOSS", "SIZE", "PREVIEWS")
HELD_OUT = "HELD OUT"  # a column of runs that measure that loss


class CheckpointTable(DataTable[Text]):
    BINDINGS = bindings("checkpoints.choose", "list.down", "list.up", "table.top", "table.bottom")


class CheckpointsScreen(Dialog[int | None]):
    """Dismisses with the step to go back to, or None."""

    BINDINGS = bindings("dialog.cancel", "app.help")

    def __init__(self, name: str, run_dir: Path, found: list[StoredCheckpoint]) -> None:
        super().__init__()
        self._name, self._run_dir, self._found = name, run_dir, found[::-1]

    def compose(self) -> ComposeResult:
        with Vertical(id="checkpoints-box"):
            yield Static(
                f"Checkpoints of {self._name}: Enter goes back to one, Esc leaves", id="checkpoints-title", markup=False
            )
            if text := best_text(self._found[::-1]):
                yield Static(escaped(f"By held-out loss, {text}."), id="checkpoints-best", markup=False)
            yield CheckpointTable(cursor_type="row", cell_padding=1)
            yield Static(id="checkpoints-detail", markup=False)
        yield FittingFooter(show_command_palette=False)

    def on_mount(self) -> None:
        table = self.query_one(CheckpointTable)
        ranked = any(c.held_out is not None for c in self._found)
        table.add_columns(*COLUMNS[:4], *([HELD_OUT] if ranked else []), *COLUMNS[4:])
        now = time.time()
        for c in self._found:
            losses = [loss_text(c.losses[e]) if e in c.losses else "-" for e in ("high_noise", "low_noise")]
            cells = [
                str(c.step),
                clock_time(c.time, now),
                *losses,
                *([held_out_text(c)] if ranked else []),
                human(c.size),
                str(len(c.previews) or "-"),
            ]
            table.add_row(*(Text(cell, no_wrap=True) for cell in cells))
        table.focus()

    @on(DataTable.RowHighlighted)
    def _moved(self, event: DataTable.RowHighlighted) -> None:
        c = self._found[event.cursor_row]
        lines = [shown_path(str(self._run_dir / p)) for p in [c.path, *c.previews[:2]]]
        if c.why and c.verdict != "best":
            lines.append(escaped(f"held-out loss against step {c.against}: {c.why}"))
        self.query_one("#checkpoints-detail", Static).update("\n".join(lines))

    @on(DataTable.RowSelected)
    def _chosen(self, event: DataTable.RowSelected) -> None:
        self.dismiss(self._found[event.cursor_row].step)

    def action_cancel(self) -> None:
        self.dismiss(None)
