"""What the run is doing right now and how far it is: loading, caching, training, sampling, saving."""

from rich.text import Text
from textual.content import Content
from textual.widgets import Static

from daemon.protocol import ENDED_STATES, JobRecord
from presets.fold import RunView
from wanlora_tui.text import shorten, so_far, state_text
from wanlora_tui.widgets.meters import bar


class PhaseBar(Static):
    """`training ████░░░░ 41% 812/2000`, one line."""

    def show(self, record: JobRecord, view: RunView) -> None:
        width = max(20, self.size.width)
        if record.state in ENDED_STATES or record.state == "queued":
            text = ", ".join(view.files) or record.outcome or view.outcome
            self.update(Text(shorten(f"{state_text(record.state)}{'  ' + text if text else ''}", width), style="bold", no_wrap=True))
            return
        phase = view.phase
        if phase.name == "paused":
            self.update(Content.assemble(("‖ paused ", "bold $warning"), (shorten(phase.text, max(1, width - 9)), "$warning")))
            return
        name = f"{phase.name} " if not phase.text else f"{phase.name} {shorten(phase.text, width // 3)} "
        if not phase.total:
            self.update(Text(name, style="bold", no_wrap=True))
            return
        numbers = f" {100 * phase.done // phase.total:3d}% {so_far(phase.done, phase.total)}"
        self.update(Content.assemble((name, "bold"), bar(phase.done, phase.total, max(4, width - len(name) - len(numbers))), numbers))
