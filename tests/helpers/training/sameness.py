"""Whether two runs, OUT/runs/NAME each, came to the same, bit for bit: what an interrupted run is held to.

Compared are: every tensor and plain value of the checkpoints, the LoRA files tensor by tensor with their metadata,
posters byte by byte, what the events tell of the branch that survived, and what a dashboard would show of it. Videos,
and the sheets made of their frames, are compared with a tolerance: two encodes of the same frames by libx264's SIMD
code may differ a little; the posters hold their middle frames exactly. Left out is what cannot be the same: wall clock,
seconds, memory in use and findings about those, run id, attempt and seq, the page that tells of these, which older
checkpoints are left (an interruption leaves one of its own), and the sha256 of a checkpoint (its state names run and
attempt), which is held against the checkpoint itself instead.
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.runfolder import checkpoint
from presets.diagnosis.resources import TIMING
from presets.runs.events import Event, read_events
from presets.runs.run_view import RunView, apply_event

OF_THE_MOMENT = ("seconds", "vram_gib", "ram_gib", "ranks", "at_once", "sha256", "order", "oldest")
TOLD = ("step", "checkpoint", "sample", "validation", "changed", "done")
OF_AN_ATTEMPT = ("run", "attempt")


def events_of(run: Path) -> list[Event]:
    return [event for event, _ in read_events(run / "events.jsonl")]


def branch(run: Path) -> list[dict[str, Any]]:
    """What the events tell of the weights that lie in the run folder now: each attempt takes back what came after its
    checkpoint."""
    told: list[dict[str, Any]] = []
    for event in events_of(run):
        if event.kind == "started":  # what was set after its checkpoint it tells again, and that it is done
            told = [
                data
                for data in told
                if data["step"] < event.data["resumed_from"] + (data["kind"] not in ("changed", "done"))
            ]
        elif "step" in event.data and (
            event.kind in TOLD or (event.kind == "finding" and event.data["code"] not in TIMING)
        ):
            data = {"kind": event.kind, **{k: v for k, v in event.data.items() if k not in OF_THE_MOMENT}}
            if event.kind != "sample" or data not in told:  # a preview that was torn is made anew, and the same
                told.append(data)
    return told


def view_of(run: Path) -> dict[str, Any]:
    view = RunView()
    for event in events_of(run):
        apply_event(view, event)
    for points in view.losses.values():
        for point in points:
            point.time = 0.0  # the clock's, which no two runs share
    return {
        name: getattr(view, name)
        for name in (
            "state",
            "steps",
            "step",
            "expert",
            "loss",
            "lr",
            "grad_norm",
            "timestep",
            "losses",
            "samples",
            "checkpoints",
            "measured",
            "files",
            "outcome",
        )
    }


def checkpoint_of(folder: Path) -> dict[str, str]:
    """File -> digest of what it holds; the state without what names the attempt."""
    assert checkpoint.verify(folder) == "", checkpoint.verify(folder)
    out = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix == ".safetensors"
    }
    state = json.loads((folder / "state.json").read_text().replace(str(folder.parents[3]), "HERE"))  # paths of the job
    return {**out, "state.json": json.dumps({k: v for k, v in state.items() if k not in OF_AN_ATTEMPT}, sort_keys=True)}


def alike(a: Path, b: Path) -> bool:
    """Whether two videos, or two pictures made of their frames, show the same but for the encoder's noise."""
    x, y = (
        np.stack([f.to_ndarray(format="rgb24") for f in av.open(str(path)).decode(video=0)]).astype(int)
        for path in (a, b)
    )
    return x.shape == y.shape and np.abs(x - y).mean() < 1


def of_videos(path: Path) -> bool:
    """Videos, and the sheets that are made of frames read back from them."""
    return path.suffix == ".mp4" or path.name == "sheet.png" or path.name.startswith("compare_")


def digest(path: Path) -> str:
    match path.suffix:
        case _ if of_videos(path):
            return "compared apart"
        case ".safetensors":  # the library writes metadata in random order
            with safe_open(path, "np") as f:
                metadata = f.metadata()
            whole = hashlib.sha256(
                json.dumps(sorted((metadata or {}).items())).replace(str(path.parents[2]), "HERE").encode()
            )
            for name, tensor in sorted(load_file(path).items()):
                whole.update(
                    f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
                    + tensor.contiguous().view(torch.uint8).numpy().tobytes()
                    if tensor.dim()
                    else repr((name, tensor)).encode()
                )
            return whole.hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_of(run: Path) -> dict[str, str]:
    """Every file a user finds in the run folder -> its digest."""
    out = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run)
        if name.parts[0] in (checkpoint.CHECKPOINTS, "control", "abandoned") or name.name in (
            "events.jsonl",
            "report.html",
            ".lock",
            "job.toml",
            ".reserve",
        ):
            continue
        out[str(name)] = digest(path)
    return out


def without_gradient(run: Path) -> list[str]:
    """The experts whose steps all had a gradient of 0: runs that learn nothing are alike, whatever is wrong."""
    norms: dict[str, list[float]] = defaultdict(list)
    for event in events_of(run):
        if event.kind == "step":
            norms[event.data["expert"]].append(event.data["grad_norm"])
    return [f"{run}: {expert} got no gradient in any of {len(of)} steps" for expert, of in norms.items() if not any(of)]


def differences(run: Path, straight: Path, *, extra_saves: bool = False) -> list[str]:
    """How an interrupted run differs from the uninterrupted one, or why the two prove nothing; empty when it does not.
    With `extra_saves` stops saved at steps of their own."""
    out = [*without_gradient(run), *without_gradient(straight)]

    def compare(what: str, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
        out.extend(f"{what}: {k} is missing" for k in theirs.keys() - mine.keys())
        out.extend(f"{what}: {k} is too many" for k in mine.keys() - theirs.keys())
        out.extend(
            f"{what}: {k} differs: {str(mine[k])[:300]} and not {str(theirs[k])[:300]}"
            for k in sorted(theirs.keys() & mine.keys())
            if mine[k] != theirs[k]
        )

    saved, wanted = ({f.name: f for f in checkpoint.listed(folder)} for folder in (run, straight))
    last = max(wanted)
    assert last in saved, f"no final checkpoint: {sorted(saved)}"
    if not extra_saves and saved.keys() != wanted.keys():
        out.append(f"checkpoints kept: {sorted(saved)} and not {sorted(wanted)}")
    for name in saved.keys() & wanted.keys():
        compare(name, checkpoint_of(saved[name]), checkpoint_of(wanted[name]))

    mine, theirs = files_of(run), files_of(straight)
    if extra_saves:
        # their LoRA files stay until the next ones are old
        damaged = {folder.name.partition(".")[0] for folder in (run / checkpoint.CHECKPOINTS).glob("*.damaged-*")}
        steps = {name.removeprefix("step_") for name in (saved.keys() ^ wanted.keys()) | (damaged - wanted.keys())}
        mine, theirs = (
            {k: v for k, v in files.items() if not any(step in k for step in steps)} for files in (mine, theirs)
        )
    compare("files", mine, theirs)
    out.extend(
        f"video: {name} differs"
        for name in mine.keys() & theirs.keys()
        if of_videos(run / name) and not alike(run / name, straight / name)
    )

    told, expected = branch(run), branch(straight)
    if extra_saves:
        told, expected = ([data for data in events if data["kind"] != "checkpoint"] for events in (told, expected))
    if told != expected:
        n = next(
            (i for i, (a, b) in enumerate(zip(told, expected, strict=False)) if a != b), min(len(told), len(expected))
        )
        out.append(f"events: from number {n} on, {told[n : n + 1]} and not {expected[n : n + 1]}")

    seen, shown = view_of(run), view_of(straight)
    if extra_saves:
        del seen["checkpoints"], shown["checkpoints"]
    compare("view", seen, shown)

    seqs = [event.seq for event in events_of(run)]
    if seqs != list(range(1, len(seqs) + 1)):
        out.append("events: seq has gaps")
    told_of = {d["path"]: d["sha256"] for e in events_of(run) if e.kind == "checkpoint" and (d := e.data)}
    for name, folder in saved.items():
        if (
            told_of.get(f"{checkpoint.CHECKPOINTS}/{name}")
            != hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        ):
            out.append(f"events: the sha256 told of {name} is not that of its manifest")
    out.extend(f"left over: {p.relative_to(run)}" for p in run.rglob("*") if ".tmp" in p.name)
    return out
