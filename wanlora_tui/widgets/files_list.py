"""LoRA files, checkpoints, findings and the plan of a run, line by line: the line under the cursor can be copied.

What is copied is the screen's to say (`chosen`).
"""

from pathlib import Path
from typing import NamedTuple

from rich.text import Text
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from presets.runs.run_folder import PAGE_FILE
from presets.runs.run_view import RunView
from presets.text import escaped, sentences, to_type
from wanlora_tui.actions import bindings
from wanlora_tui.output.far_words import advised, is_away, shown_path
from wanlora_tui.output.formatting import count
from wanlora_tui.output.hanging import hanging

INDENT = 2  # columns, of what follows a line's end
MOST_CHECKPOINTS = 100  # that are listed, the newest


class Line(NamedTuple):
    label: Text
    words: Text
    path: tuple[str, Path] | None  # what it names, and where that lies


class FilesList(OptionList):
    """Where the results are and what is to be known about the run."""

    BINDINGS = bindings("list.down", "list.up", "list.top", "list.bottom")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, compact=True, markup=False)
        self.border_title = "files and findings"
        self._shown: tuple[object, ...] = ()
        self._listed: list[Line] = []

    @property
    def chosen(self) -> tuple[str, Path] | None:
        """What the line under the cursor names, and where it lies: absolute, on the job's machine. None while the list
        has no cursor, and on lines that name no file."""
        at = self.highlighted
        return self._listed[at].path if self.has_focus and at is not None and at < len(self._listed) else None

    def show(self, view: RunView, run_dir: Path, *, failure: str = "", fetching: str = "") -> None:
        """`failure`: all that is known of why it failed, with the trainer's last lines. `fetching`: how bringing its
        files here gets on."""
        saved = [c.path for c in view.checkpoints[-MOST_CHECKPOINTS:]]  # others, and as many, after a rollback
        about = (view.state, view.device, view.plan, view.step > 0, len(view.checkpoints))
        shown = (*about, saved, [*view.files], [*view.findings], run_dir, failure, fetching)
        if shown == self._shown:
            return
        self._shown = shown
        self._listed = _lines(view, run_dir, failure, fetching)
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        width, at = self.content_size.width - self.styles.scrollbar_size_vertical, self.highlighted
        self.clear_options()
        if width > 0:  # else nobody sees it
            self.add_options(Option(hanging(line.label, line.words, width, INDENT)) for line in self._listed)
        if at is not None and self._listed:
            self.highlighted = min(at, len(self._listed) - 1)

    @property
    def text(self) -> str:
        """All of it, as it is read."""
        return "\n".join(f"{line.label}{line.words}" for line in self._listed)


def _lines(view: RunView, run_dir: Path, failure: str, fetching: str) -> list[Line]:
    lines: list[Line] = []

    def add(label: str, words: str, style: str = "dim", path: tuple[str, Path] | None = None) -> None:
        lines.append(Line(Text(escaped(label), style), Text(escaped(words)), path))

    if failure:
        first, *rest = advised(failure).split("\n")
        add("✗ failed  ", first, "bold")
        for line in rest:
            add("", line)
    add("Run folder  ", shown_path(str(run_dir)), path=("Run folder", run_dir))
    if is_away():
        way = advised(to_type("fetch", run_dir.name, "--what run"))
        add("Fetch  ", fetching or f"B brings the newest LoRA files here; previews and the rest: {way}")
    if view.device:
        add("Device  ", view.device)
    if view.plan:
        add("Plan  ", view.plan)
    for file in view.files:
        add("✓ LoRA  ", file, "bold", ("LoRA file", run_dir / file))
    if view.step and view.state in ("done", "stopped"):
        add("Page  ", PAGE_FILE, path=("Page of the run", run_dir / PAGE_FILE))
    if view.checkpoints:
        newest = view.checkpoints[-1]
        add(
            f"{count(len(view.checkpoints), 'checkpoint')}, newest  ",
            newest.path,
            path=(f"Checkpoint of step {newest.step}", run_dir / newest.path),
        )
    for finding in view.findings:
        about = f"! {finding['severity']} {finding['field']}".rstrip() + ": "
        add(about, advised(sentences(finding["message"], finding["fix"])), "bold")
    if not view.findings:
        add("No findings.", "")
    for checkpoint in view.checkpoints[-2 : -MOST_CHECKPOINTS - 1 : -1]:
        where = (f"Checkpoint of step {checkpoint.step}", run_dir / checkpoint.path)
        add("Checkpoint  ", checkpoint.path, path=where)
    return lines
