"""Complete resumable states on disk: written aside, fsynced, hashed in a manifest, renamed. Never half there.

A checkpoint folder holds, for each trained expert, `lora_EXPERT.safetensors` (fp32), `optimizer_EXPERT.safetensors` and
maybe `ema_EXPERT.safetensors`, then `state.json` (step, job, base identity, versions, the optimizers' plain values) and
`manifest.json` (size and sha256 of each file), which is written last. torch is imported by what reads or writes tensors
alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engine.system import fault_injection
from engine.system.durable_files import make_folder, sha256
from presets.atomic_file import fsync
from presets.errors import UserError
from presets.runs.checkpoints import checkpoint_folders

if TYPE_CHECKING:
    import torch

CHECKPOINTS = "checkpoints"
NO_DIGEST = "0" * 64  # as long as one
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TENSOR = "__tensor__"  # in a skeleton: the key of a tensor that lives in the safetensors file


@dataclass
class State:
    """What a checkpoint holds. `meta` is plain JSON; tensors are by expert."""

    step: int  # optimizer steps done
    lora: dict[str, dict[str, torch.Tensor]]
    optimizer: dict[str, dict[str, Any]]  # torch's optimizer.state_dict()
    ema: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """About what it takes on the disk."""
        flat: dict[str, torch.Tensor] = {}
        _split([self.lora, self.optimizer, self.ema], "", flat)
        return sum(tensor.nbytes for tensor in flat.values())


class DiskFull(UserError):
    """No room for a checkpoint; the ones already there are whole."""


def folder_name(step: int) -> str:
    return f"step_{step:09d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def save(run: Path, state: State, *, rehearsal: bool = False) -> tuple[Path, str]:
    """Write `checkpoints/step_NNNNNNNNN`; returns (folder, sha256 of its manifest). Raises DiskFull or UserError.

    A checkpoint of the same step (from an attempt that was rolled back) is replaced. A rehearsal does all but the
    rename, and hashes nothing: nobody will read it.
    """
    parent = run / CHECKPOINTS
    final = parent / folder_name(state.step)
    aside = parent / f"{final.name}.tmp-{os.getpid()}"
    try:
        fault_injection.at("save.begin", state.step)
        make_folder(parent)
        aside.mkdir()
        manifest: dict[str, dict[str, Any]] = {}
        for name, write in _parts(state).items():
            write(aside / name)
            fsync(aside / name)
            digest = NO_DIGEST if rehearsal else sha256(aside / name)
            manifest[name] = {"bytes": (aside / name).stat().st_size, "sha256": digest}
            fault_injection.at(f"save.after-{name.partition('_')[0]}", state.step)
        fault_injection.at("save.before-manifest", state.step)
        text = json.dumps({"step": state.step, "files": manifest}, indent=1)
        (aside / "manifest.json").write_text(text)
        fsync(aside / "manifest.json")
        fsync(aside)
        fault_injection.at("save.before-rename", state.step)
        if rehearsal:
            return aside, ""
        before = parent / f"{final.name}.old-{os.getpid()}"
        if final.exists():
            final.rename(before)
        aside.rename(final)
        fault_injection.at("save.after-rename", state.step)
        fsync(parent)
        if before.exists():  # only now: a power cut must not find the old one deleted and the new one not in its place
            shutil.rmtree(before)
    except Exception as e:
        raise_refusal(e, parent)
    finally:
        if aside.exists():
            shutil.rmtree(aside)
    return final, hashlib.sha256(text.encode()).hexdigest()


def raise_refusal(error: Exception, where: Path) -> NoReturn:
    """Raise a failed write as a user's error, and any other error as it is."""
    if (refused := refusal_of(error, where)) is error:
        raise error
    raise refused from error


def refusal_of(error: Exception, where: Path) -> Exception:
    """A failed write as a user's error; any other error as it is. safetensors has the system's error in its text
    alone."""
    code = re.search(r"os error (\d+)", str(error))
    if code and not isinstance(error, OSError):
        error = OSError(int(code[1]), os.strerror(int(code[1])))
    if not isinstance(error, OSError):
        return error
    if error.errno in FULL:
        return DiskFull(
            "the disk is full: nothing was lost, earlier checkpoints are whole",
            where=str(where),
            fix="Free some space, then resume",
        )
    return UserError(
        f"cannot write there: {error.strerror}",
        where=str(where),
        fix="Make the folder writable, or choose another with --out",
    )


def _parts(state: State) -> dict[str, Any]:
    """File name -> function that writes it."""
    from safetensors.torch import save_file

    parts: dict[str, Any] = {}

    def tensors(values: dict[str, torch.Tensor]) -> Any:
        # copies: 8-bit AdamW shares its tables
        return lambda path: save_file(
            {k: v.detach().to("cpu", copy=True).contiguous() for k, v in values.items()}, path
        )

    skeletons: dict[str, Any] = {}
    for expert, values in state.lora.items():
        parts[f"lora_{expert}.safetensors"] = tensors(values)
    for expert, values in state.ema.items():
        parts[f"ema_{expert}.safetensors"] = tensors(values)
    for expert, optimizer in state.optimizer.items():
        flat: dict[str, torch.Tensor] = {}
        skeletons[expert] = _split(optimizer, "", flat)
        parts[f"optimizer_{expert}.safetensors"] = tensors(flat)
    plain = {"step": state.step, "optimizer": skeletons, **state.meta}
    parts["state.json"] = lambda path: path.write_text(json.dumps(plain))
    return parts


def _split(value: Any, at: str, flat: dict[str, torch.Tensor]) -> Any:
    """Take the tensors out of a nested state_dict: they go to `flat`, the rest stays plain. Dict keys keep their
    type."""
    import torch

    if isinstance(value, torch.Tensor):
        flat[at] = value
        return {_TENSOR: at}
    if isinstance(value, dict):
        return {"__dict__": [[k, _split(v, f"{at}.{k}", flat)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_split(v, f"{at}.{i}", flat) for i, v in enumerate(value)]
    assert value is None or isinstance(value, bool | int | float | str), type(value)
    return value


def _join(value: Any, flat: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        return flat[value[_TENSOR]] if _TENSOR in value else {k: _join(v, flat) for k, v in value["__dict__"]}
    return [_join(v, flat) for v in value] if isinstance(value, list) else value


def verify(folder: Path) -> str:
    """Why a checkpoint cannot be trusted, or "" when every file is as its manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                return f"{name} differs from its manifest"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        return f"no readable manifest ({e})"
    return ""


def listed(run: Path) -> list[Path]:
    """Checkpoint folders by name, oldest first, unverified."""
    return checkpoint_folders(run)


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not."""
    refused: list[str] = []
    for folder in reversed(listed(run)):
        why = verify(folder)
        if not why:
            return folder, refused
        refused.append(f"checkpoint {folder.name} is damaged and was passed over: {why}")
    return None, refused


def digest(folder: Path) -> str:
    """What `save` returned for a checkpoint."""
    return sha256(folder / "manifest.json")


def of_step(run: Path, step: int) -> Path:
    """The checkpoint of a step. Raises UserError when there is none, with the steps there are, or when it is
    damaged."""
    folder = run / CHECKPOINTS / folder_name(step)
    if not folder.exists():
        steps = ", ".join(str(step_of(f)) for f in listed(run))
        raise UserError(
            f"there is no checkpoint of step {step}",
            where=str(run),
            fix=(
                f"There are checkpoints of the steps {steps}"
                if steps
                else "There is no checkpoint at all: start without --from"
            ),
        )
    if why := verify(folder):
        raise UserError(f"the checkpoint is damaged: {why}", where=str(folder), fix="Choose another")
    return folder


def load(folder: Path) -> State:
    """Read a verified checkpoint; tensors on the CPU."""
    from safetensors.torch import load_file

    plain = json.loads((folder / "state.json").read_text())
    skeletons = plain.pop("optimizer")
    step = plain.pop("step")
    experts = list(skeletons)
    return State(
        step=step,
        lora={e: load_file(folder / f"lora_{e}.safetensors") for e in experts},
        optimizer={e: _join(skeletons[e], load_file(folder / f"optimizer_{e}.safetensors")) for e in experts},
        ema={
            e: load_file(folder / f"ema_{e}.safetensors") for e in experts if (folder / f"ema_{e}.safetensors").exists()
        },
        meta=plain,
    )


def set_aside(run: Path, *, after: int) -> None:
    """Rename damaged checkpoints newer than step `after`, so that they do not count among those kept."""
    for folder in listed(run):
        if step_of(folder) > after:
            folder.rename(folder.with_name(f"{folder.name}.damaged-{os.getpid()}"))


def prune(run: Path, keep: int) -> list[int]:
    """Remove all but the newest `keep` checkpoints; returns the steps removed."""
    removed: list[int] = []
    for folder in listed(run)[:-keep]:
        shutil.rmtree(folder)
        removed.append(step_of(folder))
    return removed


def sweep(run: Path) -> None:
    """Remove what killed writers left behind. One that was moved aside for another, which never came, goes back to its
    place."""
    for leftover in (run / CHECKPOINTS).glob("step_*.tmp-*"):
        shutil.rmtree(leftover)
    for pattern in (".*.tmp", "samples/.*.tmp", "samples/step_*/.*.tmp"):  # see presets.atomic_file
        for aside in run.glob(pattern):
            aside.unlink()
    for old in (run / CHECKPOINTS).glob("step_*.old-*"):
        place = old.with_name(old.name.partition(".")[0])
        shutil.rmtree(old) if place.exists() else old.rename(place)
