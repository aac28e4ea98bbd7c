"""The checkpoints of a run that it can go back to, each with what helps to choose: when, losses, previews. They are
written and read by engine.runfolder.checkpoint."""

import json
import re
from pathlib import Path

from msgspec import Struct, field

from presets.files import read_regular
from presets.runs.run_view import RunView

MAX_MANIFEST_BYTES = 16 * 2**20
MEAN_OF = 20  # steps of an expert up to the checkpoint whose mean loss is shown: single steps say little


class StoredCheckpoint(Struct, kw_only=True):
    """One complete checkpoint."""

    step: int
    time: float  # wall clock, when it was written
    path: str  # relative to the run folder, here and below
    size: int  # bytes
    losses: dict[str, float] = field(default_factory=dict)  # expert -> mean of its last steps up to here
    previews: list[str] = field(default_factory=list)  # videos made at this step


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """The folders of checkpoints by name, oldest first, unverified."""
    return sorted(p for p in (run_dir / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d{9}", p.name))


def checkpoints_of(run_dir: Path, view: RunView) -> list[StoredCheckpoint]:
    """Oldest first. Those that are still there and complete: older ones were removed (save.keep), abandoned ones lie
    elsewhere."""
    found = []
    for folder in checkpoint_folders(run_dir):
        try:
            manifest = folder / "manifest.json"
            written, listed = manifest.stat().st_mtime, json.loads(read_regular(manifest, MAX_MANIFEST_BYTES))["files"]
            size = sum(int(entry["bytes"]) for entry in listed.values())
        # half removed, or damaged: the trainer would pass over it, too
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        step = int(folder.name.removeprefix("step_"))
        found.append(
            StoredCheckpoint(
                step=step,
                time=written,
                path=f"checkpoints/{folder.name}",
                size=size,
                losses=_losses(view, step),
                previews=[s.path for s in view.samples if s.step == step],
            )
        )
    return found


def _losses(view: RunView, step: int) -> dict[str, float]:
    out = {}
    for expert, points in view.losses.items():
        last = [p.loss for p in points if p.step <= step][-MEAN_OF:]
        if last:
            out[expert] = sum(last) / len(last)
    return out
