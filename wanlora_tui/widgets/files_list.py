"""LoRA files, checkpoints, findings and the plan of a run, as text that can be read and copied."""

from pathlib import Path

from rich.text import Text
from textual.containers import VerticalScroll
from textual.widgets import Static

from presets.runs.run_view import RunView
from presets.text import sentences
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import count, home_path


class FilesList(VerticalScroll):
    """Where the results are and what is to be known about the run."""

    BINDINGS = bindings("text.down", "text.up", "text.top", "text.bottom")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(Static(id="files-text"), id=id)
        self.border_title = "files and findings"
        self._shown: tuple[object, ...] = ()

    def show(self, view: RunView, run_dir: Path, *, failure: str = "") -> None:
        """`failure`: all that is known of why it failed, with the trainer's last lines."""
        shown = (view.state, len(view.files), len(view.checkpoints), len(view.findings), view.plan, run_dir, failure)
        if shown == self._shown:
            return
        self._shown = shown
        text = Text(overflow="fold")
        if failure:
            text.append("✗ failed  ", "bold").append(f"{failure}\n")
        text.append("Run folder  ", "dim").append(f"{home_path(str(run_dir))}\n")
        if view.device:
            text.append("Device  ", "dim").append(f"{view.device}\n")
        if view.plan:
            text.append("Plan  ", "dim").append(f"{view.plan}\n")
        for file in view.files:
            text.append("✓ LoRA  ", "bold").append(f"{file}\n")
        if view.checkpoints:
            newest = view.checkpoints[-1]
            text.append(f"{count(len(view.checkpoints), 'checkpoint')}, newest  ", "dim").append(f"{newest.path}\n")
        for finding in view.findings:
            text.append(f"! {finding['severity']} {finding['field']}".rstrip() + ": ", "bold").append(
                f"{sentences(finding['message'], finding['fix'])}\n"
            )
        if not view.findings:
            text.append("No findings.", "dim")
        self.query_one(Static).update(text)
