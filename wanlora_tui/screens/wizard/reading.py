"""What the wizard reads of the machine and of clips: workers read, messages bring it, handlers change the state.

The steps, keys and what is shown of all this are the WizardScreen's, in screen.py.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from textual import on, work
from textual.message import Message
from textual.screen import Screen
from textual.worker import Worker, WorkerState

from daemon.wire.protocol import JobRecord
from presets.clips.clip_facts import DatasetFacts, scan_dataset
from presets.job.schema import DatasetPanel
from presets.look import Look, LookEnded
from presets.machine.machine import Machine, read_machine
from wanlora_tui.draft.draft_store import Draft
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.screens.wizard.pane import StepPane


@dataclass
class MachineRead(Message):
    machine: Machine


@dataclass
class Scanned(Message):
    folder: str
    found: DatasetFacts


class ReadingScreen(Screen[JobRecord | str | None]):
    """A screen over a WizardState that keeps up with what is read. `show` is called when something is there."""

    def __init__(self) -> None:
        super().__init__()
        self.state = WizardState(Draft(), Path.cwd())
        self._machine_there = asyncio.Event()

    def show(self) -> None:
        """Bring the step in view up to date with the state."""
        raise NotImplementedError

    @work(thread=True, group="machine", exit_on_error=False)
    def _read_machine(self) -> None:
        self.post_message(MachineRead(read_machine(self.state.cwd)))

    @on(MachineRead)
    def _machine_read(self, event: MachineRead) -> None:
        self.state.machine = event.machine
        self.state.refresh()
        self._machine_there.set()
        self.show()

    @property
    def looking(self) -> bool:
        """Clips are being read, here or in the review."""
        return any(not look.ended for look in self._all_looks())

    def end_looks(self) -> None:
        """End every look at clips; its threads notice it between two frames."""
        for look in self._all_looks():
            look.end()

    def _all_looks(self) -> list[Look]:
        return [*self.state.looks.values(), *(pane.look for pane in self.query(StepPane) if pane.look is not None)]

    def _scan(self) -> None:
        """Read the folders that have not been read yet."""
        looks = self.state.looks
        for index, folder in enumerate(self.state.draft.folders):
            if folder not in self.state.scans and folder not in looks:
                looks[folder] = Look()
                self._scan_folder(folder, index, looks[folder])

    @work(thread=True, group="scan", exit_on_error=False)
    def _scan_folder(self, folder: str, index: int, look: Look) -> None:
        try:
            self.post_message(Scanned(folder, scan_dataset(DatasetPanel(path=folder), index, self.state.cwd, look)))
        except LookEnded:
            return

    @on(Scanned)
    def _scanned(self, event: Scanned) -> None:
        if event.folder in self.state.draft.folders:  # it may have been removed meanwhile
            self.state.looks.pop(event.folder, None)
            self.state.scans[event.folder] = event.found
            self.state.refresh()
            self.show()

    @on(Worker.StateChanged)
    def _worker_failed(self, event: Worker.StateChanged) -> None:
        if event.state is WorkerState.ERROR:
            self.notify(
                f"{type(event.worker.error).__name__}: {event.worker.error}",
                title="A bug: this could not be read",
                severity="error",
                timeout=30,
            )
