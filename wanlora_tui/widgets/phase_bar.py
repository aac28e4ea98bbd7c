"""The first lines of a screen about one run: its name, what it is doing right now and how far it is."""

import time

from rich.text import Text
from textual.content import Content
from textual.widgets import Static

from daemon.wire.protocol import ENDED_STATES, JobRecord
from presets.runs.run_view import RunView
from presets.text import escaped
from wanlora_tui.output.formatting import shorten, so_far, state_text
from wanlora_tui.output.hanging import titled
from wanlora_tui.output.queue_words import expected, speaks, standing
from wanlora_tui.terminal.rows import Rows
from wanlora_tui.widgets.meters import bar


class TitleLine(Static):
    """The name, and what is said of the run, in one line: cut anew when it has another width."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._said: tuple[str, str] = ("", "")
        self._shown = Text()

    def on_resize(self) -> None:
        self._draw()

    def show(self, name: str, rest: str) -> None:
        self._said = name, rest
        self._draw()

    def _draw(self) -> None:
        shown = titled(*self._said, self.content_size.width)
        if shown != self._shown:
            self._shown = shown
            self.update(shown, layout=False)


class PhaseBar(Rows):
    """`training ████░░░░ 41% 812/2000`, one line; why a run has failed takes as many as it needs, within reason."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._last: tuple[JobRecord, RunView] | None = None

    def on_resize(self) -> None:
        if self._last is not None:
            self.show(*self._last)

    def show(self, record: JobRecord, view: RunView) -> None:
        self._last = record, view
        width = max(20, self.size.width)
        self.put(self._said(record, view, width).wrap(width))

    @staticmethod
    def _said(record: JobRecord, view: RunView, width: int) -> Content:
        if record.state == "queued":  # what came of an earlier attempt says nothing about this one
            # what it waits for besides its turn; how long until a restart, the trainer's light counts down
            waits = "" if record.restart_at else expected(record, time.time())
            said = filter(None, [standing(record), record.waiting or record.held, waits])
            return Content.styled(escaped("  ".join(said)), "bold")
        if record.state in ENDED_STATES:
            return _ended(record, view, width)
        if not speaks(record, view):
            return Content.styled(state_text(record.state), "bold")
        phase = view.phase
        if phase.name == "paused":
            text = shorten(escaped(phase.text), max(1, width - 9))
            return Content.assemble(("‖ paused ", "bold $text-warning"), (text, "$text-warning"))
        does = escaped(phase.name)
        name = f"{does} {shorten(escaped(phase.text), width // 3)} " if phase.text else f"{does} "
        if not phase.total:
            return Content.styled(name, "bold")
        numbers = f" {100 * phase.done // phase.total:3d}% {so_far(phase.done, phase.total)}"
        room = max(4, width - len(name) - len(numbers))
        return Content.assemble((name, "bold"), bar(phase.done, phase.total, room), numbers)


def _ended(record: JobRecord, view: RunView, width: int) -> Content:
    if record.state == "done":
        said = f"{state_text('done')}  {view.outcome or ', '.join(view.files)}".rstrip()
        return Content.styled(shorten(escaped(said), width), "bold")
    first, _, rest = escaped(record.outcome or view.outcome).partition("\n")
    return Content.styled(f"{state_text(record.state)}  {first}{'  More: f' if rest else ''}".rstrip(), "bold")
