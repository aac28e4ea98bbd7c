"""What the run is doing right now and how far it is: loading, caching, training, sampling, saving."""

from rich.text import Text
from textual.content import Content
from textual.widgets import Static

from daemon.wire.protocol import ENDED_STATES, JobRecord
from presets.runs.run_view import RunView
from wanlora_tui.output.formatting import shorten, so_far, state_text
from wanlora_tui.widgets.meters import bar


class PhaseBar(Static):
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
        if record.state == "queued":  # what came of an earlier attempt says nothing about this one
            self.update(Text(state_text(record.state), style="bold", no_wrap=True))
            return
        if record.state in ENDED_STATES:
            self.update(self._ended(record, view, width))
            return
        phase = view.phase
        if phase.name == "paused":
            self.update(
                Content.assemble(
                    ("‖ paused ", "bold $text-warning"), (shorten(phase.text, max(1, width - 9)), "$text-warning")
                )
            )
            return
        name = f"{phase.name} " if not phase.text else f"{phase.name} {shorten(phase.text, width // 3)} "
        if not phase.total:
            self.update(Text(name, style="bold", no_wrap=True))
            return
        numbers = f" {100 * phase.done // phase.total:3d}% {so_far(phase.done, phase.total)}"
        self.update(
            Content.assemble(
                (name, "bold"), bar(phase.done, phase.total, max(4, width - len(name) - len(numbers))), numbers
            )
        )

    @staticmethod
    def _ended(record: JobRecord, view: RunView, width: int) -> Text:
        if record.state == "done":
            return Text(
                shorten(f"{state_text('done')}  {', '.join(view.files)}".rstrip(), width), style="bold", no_wrap=True
            )
        first, _, rest = (record.outcome or view.outcome).partition("\n")
        return Text(f"{state_text(record.state)}  {first}{'  More: f' if rest else ''}".rstrip(), style="bold")
