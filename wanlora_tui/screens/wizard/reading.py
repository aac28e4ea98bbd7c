"""What the wizard reads of the machine and of clips: workers read, messages bring it, handlers change the state.

The steps, keys and what is shown of all this are the WizardScreen's, in screen.py.
"""

import asyncio
import gc
import time
from dataclasses import dataclass
from pathlib import Path

from textual import on, work
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer
from textual.worker import Worker, WorkerState

from daemon.wire.protocol import JobRecord
from presets.clips.clip_facts import DatasetFacts, scan_dataset
from presets.clips.likeness.alike import Twin
from presets.facts.gather import twins_of
from presets.job.schema import DatasetPanel
from presets.look import Look, LookEnded
from presets.machine.machine import Machine, read_machine
from wanlora_tui.draft.draft_store import Draft
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.draft.recommending import Basis, Recommended
from wanlora_tui.screens.wizard.mending import ClipsChosen, ReadAgain
from wanlora_tui.screens.wizard.pane import StepPane
from wanlora_tui.widgets.key_order import IDLE, KeysInOrder

PROGRESS = 0.25  # seconds between two looks at how far a scan is
REST = 0.4  # seconds without another clip left out before what is recommended follows


@dataclass
class MachineRead(Message):
    machine: Machine


@dataclass
class Scanned(Message):
    folder: str
    found: DatasetFacts
    look: Look  # the one that found it


@dataclass
class NotScanned(Message):
    """A look at a folder's clips has died, maybe after they were found."""

    folder: str
    problem: str
    look: Look


@dataclass
class TwinsFound(Message):
    """Clips of a folder that are there twice."""

    folder: str
    twins: dict[str, Twin]  # by path of a clip
    look: Look


@dataclass
class Recommending(Message):
    """What is recommended for the clips that train by now."""

    made: Recommended


class ReadingScreen(Screen[JobRecord | str | None]):
    """A screen over a WizardState that keeps up with what is read. `show` is called when something is there."""

    def __init__(self) -> None:
        super().__init__()
        self.state = WizardState(Draft(), Path.cwd())
        self._machine_there = asyncio.Event()
        self._resting: Timer | None = None
        self._to_freeze = False  # more has come that stays

    @property
    def pane(self) -> StepPane | None:
        """The step in view."""
        raise NotImplementedError

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

    def on_mount(self) -> None:
        self.set_interval(PROGRESS, self._show_progress)
        self.set_interval(IDLE, self._freeze_rest)

    def _show_progress(self) -> None:
        """Not while one types: it would be a frame more for every other key."""
        app = self.app
        if isinstance(app, KeysInOrder) and time.monotonic() - app.taken_at < PROGRESS:
            return
        if self.pane is not None and self.pane.is_mounted and self.looking:
            self.pane.show_progress()

    def end_looks(self) -> None:
        """End every look at clips; its threads notice it between two frames."""
        for look in self._all_looks():
            look.end()

    def _all_looks(self) -> list[Look]:
        pane = self.pane
        return [*self.state.looks.values(), *([pane.look] if pane is not None and pane.look is not None else [])]

    def _scan(self) -> None:
        """Read the folders that have not been read yet, or for captions of other names."""
        state = self.state
        for index, folder in enumerate(state.draft.folders):
            if state.extensions.get(folder, state.extension(index)) != state.extension(index):
                state.drop_scan(folder)
            if folder not in state.scans and folder not in state.looks and folder not in state.unread:
                self._begin_scan(folder, index)

    def _begin_scan(self, folder: str, index: int) -> None:
        extension = self.state.extensions[folder] = self.state.extension(index)
        look = self.state.looks[folder] = Look()
        self._scan_folder(DatasetPanel(path=folder, caption_extension=extension), index, look)
        self.refresh_bindings()  # there is something to stop

    @on(ReadAgain)
    def _read_again(self, event: ReadAgain) -> None:
        """Read a folder that is known already; what is known of it stays until then."""
        event.stop()
        if event.folder not in self.state.draft.folders:
            return
        if (before := self.state.looks.get(event.folder)) is not None:
            before.end()
        self.state.unread.pop(event.folder, None)
        self._begin_scan(event.folder, self.state.draft.folders.index(event.folder))
        self.show()

    @work(thread=True, group="scan", exit_on_error=False)
    def _scan_folder(self, panel: DatasetPanel, index: int, look: Look) -> None:
        folder = panel.path
        try:
            found = scan_dataset(panel, index, self.state.cwd, look)
            self.post_message(Scanned(folder, found, look))
            self.post_message(TwinsFound(folder, twins_of(found, look), look))
        except LookEnded:
            return
        except Exception as e:
            self.post_message(NotScanned(folder, f"{type(e).__name__}: {e}", look))

    @on(NotScanned)
    def _not_scanned(self, event: NotScanned) -> None:
        if self.state.looks.get(event.folder) is event.look:
            self.state.looks.pop(event.folder)
            self.state.unread[event.folder] = event.problem
            self.show()
            self.refresh_bindings()

    @on(Scanned)
    def _scanned(self, event: Scanned) -> None:
        # it may have been removed meanwhile, or read anew
        if event.folder in self.state.draft.folders and self.state.looks.get(event.folder) is event.look:
            self.state.scans[event.folder] = event.found
            self.state.refresh()
            self.show()
            self.freeze_between_keys()

    def on_unmount(self) -> None:
        gc.unfreeze()

    def freeze_between_keys(self) -> None:
        """What is there by now stays as long as this screen does, and so does what is made of it in a moment: no look
        of the garbage collector goes through it."""
        gc.freeze()
        self._to_freeze = True

    def _freeze_rest(self) -> None:
        app = self.app
        if not self._to_freeze or (isinstance(app, KeysInOrder) and time.monotonic() - app.taken_at < IDLE):
            return
        self._to_freeze = False
        gc.collect()
        gc.freeze()

    @on(ClipsChosen)
    def _clips_chosen(self, event: ClipsChosen) -> None:
        """Recommend what suits them once no more keys come, in a thread: there may be thousands."""
        event.stop()
        if self._resting is not None:
            self._resting.stop()
        self._resting = self.set_timer(REST, self._recommend_anew)

    def _recommend_anew(self) -> None:
        if (basis := self.state.basis()) is not None:
            self._recommend(basis)

    @work(thread=True, group="recommend", exit_on_error=False, description="recommend")
    def _recommend(self, basis: Basis) -> None:
        self.post_message(Recommending(self.state.recommend(basis)))

    @on(Recommending)
    def _recommended(self, event: Recommending) -> None:
        if self.state.take(event.made):
            self.show()
        elif self.state.is_behind:
            self._recommend_anew()

    @on(TwinsFound)
    def _twins_found(self, event: TwinsFound) -> None:
        if self.state.looks.get(event.folder) is event.look:
            self.state.looks.pop(event.folder)
            self.state.twins[event.folder] = event.twins
            self.show()
            self.refresh_bindings()  # there is nothing to stop any more

    @on(Worker.StateChanged)
    def _worker_failed(self, event: Worker.StateChanged) -> None:
        if event.state is WorkerState.ERROR:
            self.notify(
                f"{type(event.worker.error).__name__}: {event.worker.error}",
                title="A bug: this could not be read",
                severity="error",
                timeout=30,
            )
