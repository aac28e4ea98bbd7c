"""The checkpoints of a run that it can go back to, each with what helps to choose: when, losses, previews. They are
written and read by engine.runfolder.checkpoint."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from presets.files import read_regular
from presets.runs.ranking import Ranking, rank
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
    held_out: float | None = None  # loss on the clips that do not train, over both experts; None: not measured
    verdict: str = ""  # by that loss: best, alike (not told apart from the best), worse; "" when nothing is claimed
    against: int = 0  # the best one's step
    why: str = ""  # of the best what that rests on, of another how far it is behind


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """The folders of checkpoints by name, oldest first, unverified."""
    return sorted(p for p in (run_dir / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d{9}", p.name))


def checkpoints_of(
    run_dir: Path, view: RunView, *, previews: Mapping[int, float] | None = None
) -> list[StoredCheckpoint]:
    """Oldest first, with what the held-out loss says of each; what that does not tell apart, how good `previews` are
    (presets.runs.ranking.rank). Those that are still there and complete: older ones were removed (save.keep), abandoned
    ones lie elsewhere."""
    found: list[StoredCheckpoint] = []
    ranking = ranking_there(run_dir, view, previews=previews)
    measured = {m.step: m.loss for m in view.measured if m.finite}
    for folder in checkpoint_folders(run_dir):
        try:
            manifest = folder / "manifest.json"
            written, listed = manifest.stat().st_mtime, json.loads(read_regular(manifest, MAX_MANIFEST_BYTES))["files"]
            size = sum(int(entry["bytes"]) for entry in listed.values())
        # half removed, or damaged: the trainer would pass over it, too
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        step = int(folder.name.removeprefix("step_"))
        ranked = ranking.of(step) if ranking else None
        found.append(
            StoredCheckpoint(
                step=step,
                time=written,
                path=f"checkpoints/{folder.name}",
                size=size,
                losses=_losses(view, step),
                previews=[s.path for s in view.samples if s.step == step],
                held_out=measured.get(step),
                verdict=ranked.verdict if ranked else "",
                against=ranking.best if ranked and ranking else 0,
                why=""
                if not ranked or not ranking
                else ranking.reason
                if ranked.verdict == "best"
                else ranked.behind.text,
            )
        )
    return found


def ranking_there(run_dir: Path, view: RunView, *, previews: Mapping[int, float] | None = None) -> Ranking | None:
    """The measured checkpoints of which something is left to use, best first; None when there is none."""
    return rank(view.measured, saved={c.step for c in view.checkpoints} & _steps_there(run_dir), previews=previews)


def _steps_there(run_dir: Path) -> set[int]:
    """Of which something is left to use: a checkpoint, or LoRA files."""
    loras = (
        re.search(r"_(\d{9})_(?:high|low)_noise\.safetensors$", p.name) for p in run_dir.glob("*_noise.safetensors")
    )
    return {int(found[1]) for found in loras if found} | {int(p.name[-9:]) for p in checkpoint_folders(run_dir)}


def best_text(found: list[StoredCheckpoint]) -> str:
    """`best: step 1500; later ones overfit (...)`; "" where nothing is claimed."""
    ranked = [c for c in found if c.verdict]
    if not ranked:
        return ""
    best = next((c for c in ranked if c.verdict == "best"), None)
    if best is None:
        newest = ranked[-1]
        return f"best: step {newest.against}, of which the LoRA files stay; step {newest.step}: {newest.why}"
    return f"best: step {best.step}{f'; {best.why}' if best.why else ''}"


def _losses(view: RunView, step: int) -> dict[str, float]:
    out = {}
    for expert, points in view.losses.items():
        last = [p.loss for p in points if p.step <= step][-MEAN_OF:]
        if last:
            out[expert] = sum(last) / len(last)
    return out
