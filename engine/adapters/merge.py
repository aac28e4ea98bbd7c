"""LoRAs that are merged into an expert's frozen weights while those are read: W + strength (alpha / rank) B A, in fp32
on the device, before anything is rounded or quantized; likewise whole differences of biases, norms and tables.

Files are merged in the order of the job. Nothing of them stays in memory: the factors of a tensor are read when its
turn comes. Which files can be merged is `presets.facts.loras`'s; the weights themselves are read by
`engine.weights.load_expert`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.adapters.lora_reader import Change, expert_shapes, read_changes
from engine.system.durable_files import sha256
from engine.weights.base_model import BaseModel
from presets.base.lora_file import OUTSIDE, TABLE, Changes, Target
from presets.errors import UserError
from presets.facts.loras import Shapes, lora_name, mergeable
from presets.job.expert_schedule import Expert, needed_experts
from presets.job.schema import Job


@dataclass(frozen=True)
class MergedFile:
    """One file, as it is merged into one expert."""

    path: Path
    changes: Changes
    strength: float
    sha256: str

    @property
    def about(self) -> dict[str, Any]:
        """What the metadata of the result says of it."""
        return {"file": lora_name(self.path), "sha256": self.sha256, "strength": self.strength}


class Merges:
    """All that is merged into one expert, in order."""

    def __init__(self, files: list[MergedFile]) -> None:
        self.files = files
        self._targets: dict[str, list[tuple[MergedFile, Target]]] = {}
        for file in files:
            for target, kinds in file.changes.items():
                for name in {_tensor(target, bias=kind == "bias") for kind in kinds}:
                    self._targets.setdefault(name, []).append((file, target))

    @property
    def identity(self) -> str:
        return "\0".join(f"{file.sha256} {file.strength}" for file in self.files)

    def has(self, name: str) -> bool:
        return name in self._targets

    def added(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        for file, target in self._targets[name]:
            kinds = file.changes[target]
            wanted = {k: key for k, key in kinds.items() if (k == "bias") == name.endswith(".bias")}
            change = read_changes(file.path, {target: wanted}, strength=file.strength)[target]
            weight = _with(weight, {kind: t.to(weight.device) for kind, t in change.items()})
        return weight


def _with(weight: torch.Tensor, change: Change) -> torch.Tensor:
    if "A" in change:
        weight = weight.addmm_(change["B"], change["A"])
    for kind in ("weight", "bias"):
        if kind in change:
            weight = weight + change[kind].view(weight.shape)
    return weight


def _tensor(target: Target, *, bias: bool) -> str:
    """The name of the tensor that a target is about in diffusers' model."""
    block, module = target
    name = module if module == TABLE else f"{module}.{'bias' if bias else 'weight'}"
    return name if block == OUTSIDE else f"blocks.{block}.{name}"


def merges_of_job(job: Job, base_dir: Path, base: BaseModel) -> tuple[dict[Expert, Merges], list[str]]:
    """What is merged into each expert that the job needs, and what is worth saying about the files. Raises
    UserError."""
    if not job.model.merge:
        return {}, []
    experts = needed_experts(job)
    config = base.source.expert(experts[0]).config
    shapes = Shapes(expert_shapes(config), config["num_layers"])
    files: dict[Expert, list[MergedFile]] = {expert: [] for expert in experts}
    notes = []
    for panel in job.model.merge:
        found = mergeable(panel, base_dir, experts, shapes)
        path = found.path
        try:
            digest = sha256(path)
        except OSError as e:
            raise UserError(f"cannot be read ({e.strerror})", where=str(path), fix="Check the disk") from None
        for expert in found.experts:
            _require_readable(path, found.changes[expert])
            files[expert].append(MergedFile(path, found.changes[expert], panel.strength, digest))
        names = " and ".join(e.replace("_", " ") for e in found.experts)
        notes.append(
            f"{lora_name(path)} is merged at {panel.strength:g} into {names or 'no expert that this job needs'}"
        )
        notes += [f"{lora_name(path)}: {note}" for note in found.notes]
    return {expert: Merges(own) for expert, own in files.items() if own}, notes


def _require_readable(path: Path, changes: Changes) -> None:
    """Raises UserError for a tensor that cannot be merged: now, not in the middle of packing. One at a time: a file may
    be large."""
    for target, kinds in changes.items():
        read_changes(path, {target: kinds})
