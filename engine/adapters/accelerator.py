"""Accelerator LoRAs: a few-step LoRA that previews alone run with, beside the trained one. Training never sees it.

What it changes inside the blocks lies in host memory and comes to the device block by block, so it needs no room there;
what it changes outside of them (embeddings, the head) is added by hooks that are removed when the previews are made. No
weight is written to. Their files are read by `engine.adapters.lora_reader`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional as F

from engine.adapters.lora_reader import Change, at_one_rank, expert_shapes, read_changes
from engine.wan.block import Lora, Plain
from engine.weights.base_model import BaseModel
from presets.base.lora_file import GIVE, OUTSIDE, PATCHES, TABLE, LoraFile, misfit, read_lora, without_other_patches
from presets.errors import UserError
from presets.facts.loras import Shapes, left_out_of
from presets.file_names import expanded
from presets.job.expert_schedule import EXPERTS, Expert
from presets.job.schema import Job


@dataclass(frozen=True)
class Accelerator:
    """What a file changes in one expert, at the job's strength; all in host memory."""

    lora: list[Lora]  # by block; the same linears at the same rank in each
    shifts: list[Plain]  # by block: what is added to biases, norms and the modulation table
    outer: dict[str, Change]  # by module outside the blocks

    @contextmanager
    def on(self, outer: WanTransformer3DModel) -> Iterator[None]:
        """Inside, an expert's modules outside the blocks are changed as well."""
        with ExitStack() as stack:
            for name, change in self.outer.items():
                if name == TABLE:
                    stack.enter_context(_table(outer, change["weight"]))
                else:
                    module = outer.get_submodule(name)
                    change = {kind: t.to(next(module.parameters()).device) for kind, t in change.items()}
                    stack.callback(module.register_forward_hook(_adding(change)).remove)
            yield


def _adding(change: Change) -> Any:
    """A forward hook that adds what a module would give more with its change."""

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        x = args[0]
        here = {kind: t.to(x.dtype) for kind, t in change.items()}
        if "A" in here:
            out = out + F.linear(F.linear(x, here["A"]), here["B"])
        if "weight" in here:
            out = out + (
                F.conv3d(x, here["weight"], stride=module.stride)
                if isinstance(module, torch.nn.Conv3d)
                else F.linear(x, here["weight"])
            )
        if "bias" in here:
            out = out + (here["bias"].view(-1, 1, 1, 1) if isinstance(module, torch.nn.Conv3d) else here["bias"])
        return out

    return hook


@contextmanager
def _table(outer: WanTransformer3DModel, difference: torch.Tensor) -> Iterator[None]:
    own = outer.scale_shift_table
    outer.scale_shift_table = torch.nn.Parameter(own + difference.to(own), requires_grad=False)
    try:
        yield
    finally:
        outer.scale_shift_table = own


def load_accelerators(
    job: Job, base_dir: Path, base: BaseModel, dtype: torch.dtype
) -> tuple[dict[Expert, Accelerator], list[str]]:
    """The accelerators of a job's previews by expert, and what is worth saying about their files. Raises UserError."""
    panel, out = job.sample, {}
    notes: list[str] = []
    for expert, text in zip(EXPERTS, (panel.accelerator, panel.accelerator_low or panel.accelerator), strict=True):
        if not text or not panel.prompts:
            continue
        path = base_dir / expanded(text)
        file = read_lora(path)
        config = base.source.expert(expert).config
        strength = panel.accelerator_strength
        out[expert] = load_accelerator(path, file, expert, config=config, strength=strength, dtype=dtype)
        for note in left_out_of(file, [expert], Shapes(expert_shapes(config), config["num_layers"])):
            notes.append(f"{path.name}: {note}")
    return out, list(dict.fromkeys(notes))  # of a file that both experts use it is said once


def load_accelerator(
    path: Path, file: LoraFile, expert: Expert, *, config: Any, strength: float, dtype: torch.dtype
) -> Accelerator:
    """Read what a file changes in an expert. `config` is the expert's, `dtype` that of activations. Raises
    UserError."""
    where = str(path)
    shapes, blocks = expert_shapes(config), config["num_layers"]
    changes, _ = without_other_patches(file, file.of(expert), shapes)
    if not changes:
        raise UserError(f"changes nothing in the {expert.replace('_', ' ')} expert", where=where, fix=GIVE)
    if problem := misfit(file, changes, shapes, blocks):
        raise UserError(problem, where=where, fix=GIVE)
    lora: list[dict[str, Change]] = [{} for _ in range(blocks)]
    shifts: list[Plain] = [{} for _ in range(blocks)]
    outer: dict[str, Change] = {}
    for (block, module), change in read_changes(path, changes, strength=strength).items():
        if block == OUTSIDE:
            if module == PATCHES and "weight" in change:
                change["weight"] = change["weight"].view(shapes[f"{PATCHES}.weight"])
            outer[module] = change
            continue
        if "A" in change:
            lora[block][module] = change
        if "weight" in change:
            shifts[block][module if module == TABLE else f"{module}.weight"] = change["weight"]
        if "bias" in change:
            shifts[block][f"{module}.bias"] = change["bias"]
    return Accelerator(at_one_rank(lora, dtype), shifts, outer)
