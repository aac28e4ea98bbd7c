"""Runs to compare with: chosen from the jobs of the daemon, or by their folder, and read or followed."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from daemon.errors import DaemonError
from daemon.wire.client import BegunAnew, Client
from daemon.wire.protocol import ENDED_STATES, JobRecord
from presets.errors import UserError
from presets.files import open_regular
from presets.runs.event_data import readable
from presets.runs.events import EVENTS_FILE, Event
from presets.runs.run_view import RunView, apply_all, apply_event
from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import state_text
from wanlora_tui.output.typed_paths import absolute
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.folder_picker import PathInput
from wanlora_tui.widgets.redraw_throttle import Dialog

RETRY_SECONDS = 1.0


class OtherCame(Message):
    """What is known of a run to compare with, or why nothing is."""

    def __init__(self, key: str, name: str, view: RunView | None, problem: str = "") -> None:
        super().__init__()
        self.key, self.name, self.view, self.problem = key, name, view, problem


async def follow(client: Client, record: JobRecord, changed: Callable[[RunView], None]) -> None:
    """The view of a job, each time that more of its run is known; ends with the run. Raises DaemonError when there is
    none at first."""
    record, view = await client.snapshot(record.id)
    changed(view)
    while record.state not in ENDED_STATES:
        try:
            async for item in client.follow(record.id, view.last_seq, view.run):
                match item:
                    case Event():
                        apply_event(view, item)
                        changed(view)
                    case BegunAnew():
                        view = RunView(name=record.name)
                    case JobRecord():
                        record = item
                        if record.state in ENDED_STATES:
                            break
        except DaemonError:
            await asyncio.sleep(RETRY_SECONDS)


def read_folder(folder: Path) -> RunView:
    """The view of the run in a folder of this machine. Raises UserError."""
    file = _events_file(folder)
    view = RunView()
    try:
        with open_regular(file) as lines:
            apply_all(view, readable(lines))
    except OSError as e:
        raise UserError(
            f"no run can be read: {e.strerror or e}", where=str(file), fix="Name the folder of a run"
        ) from None
    if not any(view.losses.values()):
        raise UserError("this run has no step yet", where=str(file), fix="Name the folder of a run that trained")
    return view


def _events_file(folder: Path) -> Path:
    return folder if folder.name == EVENTS_FILE else folder / EVENTS_FILE


class RunList(OptionList):
    BINDINGS = bindings("add_run.choose", "list.down", "list.up", "list.top", "list.bottom")


class OtherRuns(Dialog[JobRecord | Path | None]):
    """Dismisses with the job, or the folder of this machine, that is to be drawn or taken away. `shown`: the keys of
    those that are drawn."""

    BINDINGS = bindings("dialog.cancel", "app.help")

    def __init__(self, records: list[JobRecord], folders: list[Path], shown: set[str]) -> None:
        super().__init__()
        self._choices: list[JobRecord | Path] = [*records, *folders]
        self._shown = shown

    def compose(self) -> ComposeResult:
        with Vertical(id="other-runs-box"):
            yield Static("Runs to draw into the plot", id="other-runs-title")
            if self._choices:
                yield RunList(*(Option(self._line(choice)) for choice in self._choices), id="other-runs")
            else:
                yield Static("The daemon has no other run.", id="other-runs-none")
            yield Static("Or a run folder of this machine:", id="other-runs-label")
            yield PathInput(base=Path.cwd(), placeholder="runs/orbit_v1", id="other-run-path")
            yield FittingFooter(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one(RunList if self._choices else PathInput).focus()

    def _line(self, choice: JobRecord | Path) -> Text:
        mark = "✓ " if key_of(choice) in self._shown else "  "
        if isinstance(choice, Path):
            return Text(f"{mark}{escaped(str(choice))}", no_wrap=True, overflow="ellipsis")
        text = f"{mark}{escaped(choice.name)}  {state_text(choice.state)}  step {choice.step}/{choice.steps}"
        return Text(text, no_wrap=True, overflow="ellipsis")

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._choices[event.option_index])

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        if not event.value.strip():
            return
        folder = absolute(event.value, Path.cwd())
        if _events_file(folder).is_file() or key_of(folder) in self._shown:
            self.dismiss(folder)
        else:  # a slip is mended where it was made
            label = self.query_one("#other-runs-label", Static)
            label.update(Content(f"No run lies there, for it has no {EVENTS_FILE}: name the folder of a run"))
            label.add_class("-wrong")

    def action_cancel(self) -> None:
        self.dismiss(None)


def key_of(choice: JobRecord | Path) -> str:
    """What tells runs apart."""
    return str(choice) if isinstance(choice, Path) else f"#{choice.id}"
