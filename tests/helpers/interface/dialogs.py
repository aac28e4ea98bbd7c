"""One of each dialog of the interface, as it stands when it is opened."""

import importlib
import pkgutil
from collections.abc import Callable, Generator
from pathlib import Path

from textual.screen import ModalScreen, Screen

import wanlora_tui
from daemon.wire.protocol import JobRecord
from presets.findings import Finding
from presets.job.schema import DatasetPanel
from presets.runs.checkpoints import StoredCheckpoint
from wanlora_tui.draft.caption_history import CaptionChange
from wanlora_tui.draft.clip_list import ClipEntry
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.plot.other_runs import OtherRuns
from wanlora_tui.screens.change import ChangeScreen
from wanlora_tui.screens.checkpoints import CheckpointsScreen
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.frame.step_findings import StepFindings
from wanlora_tui.screens.help import HelpScreen
from wanlora_tui.screens.jobs.dialogs import AskEnded, AskText
from wanlora_tui.screens.jobs.job_file import JobFileScreen
from wanlora_tui.screens.wizard.clip_dialogs import CaptionDialog, CaptionsDialog, TakingBack
from wanlora_tui.screens.wizard.dialogs import Ask, StepHelp
from wanlora_tui.screens.wizard.offer import DraftList
from wanlora_tui.screens.wizard.submitting import SubmittingScreen
from wanlora_tui.widgets import redraw_throttle
from wanlora_tui.widgets.folder_picker import PathPicker

HELP = (HelpScreen, StepHelp)
SAVED = 1_790_000_000.0
Dialog = ModalScreen[object]


def all_dialogs() -> set[type[Screen[object]]]:
    """Every dialog that the interface has, but its pages of help: found by importing all of it."""
    for module in pkgutil.walk_packages(wanlora_tui.__path__, "wanlora_tui."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[ModalScreen[object]]] = [ModalScreen]
    for each in found:
        found += each.__subclasses__()
    others = (*HELP, redraw_throttle.Dialog)
    return {each for each in found if each.__module__.startswith("wanlora_tui.") and each not in others}


def _changes() -> list[CaptionChange]:
    return [
        CaptionChange(f"clip_{n:02d}.mp4", f"clip_{n:02d}.mp4", Path(f"clip_{n:02d}.txt"), "", f"[trigger], orbit {n}")
        for n in range(1, 13)
    ]


def _half_way() -> Generator[int, None, list[CaptionChange]]:
    while True:
        yield 1200


def _record(number: int, name: str, state: str) -> JobRecord:
    return JobRecord(
        id=number, name=name, job_path=f"/data/{name}.toml", out="/data/runs", gpus=[0], state=state,
        step=250, steps=1000, submitted_at=SAVED,
    )  # fmt: skip


def _checkpoint(step: int) -> StoredCheckpoint:
    return StoredCheckpoint(
        step=step, time=SAVED + step, path=f"checkpoints/step_{step:09d}", size=460_000_000,
        losses={"high_noise": 0.1834, "low_noise": 0.0911},
    )  # fmt: skip


def _findings() -> list[Finding]:
    return [
        Finding(code="frames-4n-plus-1", severity="error", field="datasets[0].num_frames",
                message="40 frames are not 4n + 1", fix="Take 41", set={"datasets[0].num_frames": 41}),
        Finding(code="too-many-steps", severity="warning", field="training.steps",
                message="5000 steps overfit", fix="Take 2500"),
    ]  # fmt: skip


def _drafts() -> list[tuple[DraftStore, Draft]]:
    store = DraftStore(Path("drafts/one.json"))
    return [
        (store, Draft(saved=SAVED, step="settings", kind="motion", folders=["/data/orbit"])),
        (store, Draft(saved=SAVED - 90_000, step="clips", kind="style", folders=["/data/neon"])),
    ]


def one_of_each(folder: Path) -> dict[type[Screen[object]], Callable[[], Dialog]]:
    """What makes a dialog of each kind; `folder` has a clip of no caption, and a job file that cannot be read."""
    clip = ClipEntry(0, "clip_00.mp4", str(folder / "clip_00.mp4"), None, "it cannot be read")
    question = "Stop orbit_v1 (#1)? It saves a checkpoint first, and can be resumed."
    answers = {"leave": "Leave, keep the draft", "stay": "Stay", "discard": "Throw it away"}
    makers: dict[type[Screen[object]], Callable[[], object]] = {
        Confirm: lambda: Confirm(question, "Stop it", "Leave it running"),
        AskText: lambda: AskText("Rename orbit_v1", "Its run folder keeps its name.", "orbit", "Rename", wrong=str),
        AskEnded: lambda: AskEnded({"done": 3, "failed": 1, "stopped": 2}),
        JobFileScreen: lambda: JobFileScreen(folder / "broken.toml", daemon_answers=True),
        OtherRuns: lambda: OtherRuns([_record(2, "orbit_v2", "done"), _record(3, "neon_v1", "stopped")], [], {"#2"}),
        ChangeScreen: lambda: ChangeScreen("orbit_v1", {"training.lr": 1e-4, "training.steps": 2400}),
        CheckpointsScreen: lambda: CheckpointsScreen("orbit_v1", folder, [_checkpoint(n) for n in (200, 400, 600)]),
        StepFindings: lambda: StepFindings("4 Settings", _findings()),
        Ask: lambda: Ask("Leave the wizard?", "What you have entered is kept.", answers),
        DraftList: lambda: DraftList(_drafts(), None),
        SubmittingScreen: lambda: SubmittingScreen("orbit_v1.toml"),
        PathPicker: lambda: PathPicker(folder, title="A folder of clips"),
        CaptionDialog: lambda: CaptionDialog(
            clip, DatasetPanel(path=str(folder)), "orb", "[trigger], orbit 90", file="clip_00.txt", note="", write=str
        ),
        CaptionsDialog: lambda: CaptionsDialog(
            "Fill captions", "These clips have no caption of their own:", plan=lambda _: _changes(), none="",
            write=lambda changes: iter(range(len(changes))), template="[trigger], orbit",  # type: ignore[arg-type,return-value]
        ),
        TakingBack: lambda: TakingBack("Take back: Fill captions", 5000, _half_way()),
    }  # fmt: skip
    return makers  # type: ignore[return-value]
