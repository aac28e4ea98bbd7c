"""How a finished LoRA becomes the first values of the one that trains: the same change of the model, at this job's rank
and alpha.

A module's delta is (alpha / rank) B A. A is taken as it is and B scaled so that this job's alpha / rank gives the same
delta. A smaller rank is filled up: rows of A stay as they began fresh, and columns of B zero, so they add nothing yet
and learn. What the optimizer knew is not taken over. Which file it is: `presets.facts.loras`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.adapters.lora import LoraParameters
from engine.adapters.lora_reader import Change, read_changes
from engine.system.durable_files import sha256
from presets.base.lora_file import LoraFile, Target, place
from presets.base.lora_metadata import read_metadata
from presets.base.model_facts import ModelFacts
from presets.errors import UserError
from presets.facts.loras import START_FIELDS, find_start, rank_in, shapes_of, start_of, startable
from presets.job.expert_schedule import PANEL, Expert, trained_experts
from presets.job.schema import Job


@dataclass(frozen=True)
class StartLora:
    """The LoRA that an expert's LoRA starts from, in host memory."""

    path: Path
    changes: dict[Target, Change]  # factors alone, alpha folded into B
    about: dict[str, Any]  # what the metadata of the result says of it
    image: int  # of its tensors that are for Wan 2.1's image encoder

    @property
    def text(self) -> str:
        step = f", step {self.about['step']}" if self.about["step"] is not None else ""
        return f"{self.about['file']} (rank {self.about['rank']}{step})"


def starts_of_job(job: Job, base_dir: Path, model: ModelFacts | None) -> dict[Expert, StartLora]:
    """The starts of the experts that learn. Raises UserError."""
    return {
        expert: load_start(text, expert, base_dir, model)
        for expert in trained_experts(job)
        if (text := start_of(job, expert))
    }


def load_start(text: str, expert: Expert, base_dir: Path, model: ModelFacts | None) -> StartLora:
    """Raises UserError."""
    start = find_start(text, expert, base_dir)
    file, changes = startable(start, expert, shapes_of(model))
    digest = sha256(start.file)
    if start.sha256 and digest != start.sha256:
        raise UserError(
            "the checkpoint is damaged: its LoRA differs from its manifest",
            where=str(start.file),
            fix="Give another checkpoint of that run, or one of its LoRA files",
        )
    about = {
        "file": start.name,
        "sha256": digest,
        "rank": rank_in(file, changes),
        "step": _step(start.step, file, start.file),
    }
    return StartLora(start.file, read_changes(start.file, changes, strength=start.scale), about, len(file.image))


def _step(step: int | None, file: LoraFile, path: Path) -> int | None:
    """Of a checkpoint, or of a LoRA file of ours."""
    said = read_metadata(path).get("wanlora.step", "")
    return step if step is not None else int(said) if said.isdecimal() else None


@torch.no_grad()
def take_over(start: StartLora, expert: Expert, parameters: LoraParameters, scaling: float) -> list[str]:
    """Write a start into an expert's fresh LoRA, whose alpha / rank is `scaling`; returns what is worth saying. Raises
    UserError when it does not go in."""
    where, fresh, smaller = str(start.path), _modules(parameters), set[int]()
    for (block, module), change in start.changes.items():
        name = f"blocks.{block}.{module}"
        if name not in fresh:
            raise UserError(
                f"changes {place(block, module)}, which this job does not train",
                where=where,
                fix=(
                    "Train it; or merge the file into the base with [[model.merge]], and set"
                    f' {START_FIELDS[expert]} = ""'
                ),
            )
        fresh.remove(name)
        a, b = parameters[f"{name}.lora_A.weight"], parameters[f"{name}.lora_B.weight"]
        rank, most = change["A"].shape[0], a.shape[0]
        if rank > most:
            raise UserError(
                f"has rank {rank} at {place(block, module)}, and this job {most}: cut down it would be another LoRA",
                where=where,
                fix=f"Set target.rank = {start.about['rank']}, or multistage.{PANEL[expert]}.rank",
            )
        if rank < most:
            smaller.add(most)
        a[:rank].copy_(change["A"])
        b[:, :rank].copy_(change["B"] / scaling)
    named = expert.replace("_", " ")
    notes = [f"the {named} LoRA starts from {start.text}; the optimizer begins anew"]
    if smaller:
        notes.append(f"{start.text} is filled up to rank {max(smaller)}: what is new begins as in a fresh LoRA")
    if fresh:
        notes.append(
            f"{start.text} lacks {len(fresh)} of the modules that this job trains, such as {min(fresh)}: they begin"
            " fresh"
        )
    if start.image:
        notes.append(
            f"{start.text}: {start.image} tensors for an image encoder that Wan 2.2 does not have are left out"
        )
    return notes


def _modules(parameters: LoraParameters) -> set[str]:
    return {name.removesuffix(".lora_A.weight") for name in parameters if name.endswith(".lora_A.weight")}
