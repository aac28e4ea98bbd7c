"""The LoRA that trains, of one expert: laid out as by peft, saved under the names that ComfyUI and diffusers both load.

File keys are Wan's own module names (`diffusion_model.blocks.0.self_attn.q.lora_A.weight`), one file per expert.
lora_A is (rank, in), lora_B (out, rank); the branch adds alpha / rank * B A x. What the files say of themselves is
`engine.adapters.lora_metadata`'s. LoRAs that are finished and run beside this one are read by
`engine.adapters.lora_reader`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from engine.adapters.lora_metadata import TrainedOn, lora_metadata
from engine.adapters.tensor_file import save_tensors
from engine.system.keyed_random import keyed_rng
from engine.wan.block import LINEARS, Lora, linear_shapes
from engine.weights.base_model import BaseModel
from presets.job.expert_schedule import Expert
from presets.job.lora_layers import TrainedLayer, scale_of
from presets.job.schema import Job

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# diffusers name -> Wan's own name, applied in this order
_WAN_NAMES = [
    ("attn1", "self_attn"), ("attn2", "cross_attn"), ("to_out.0", "o"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
    ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
]  # fmt: skip


LoraParameters = dict[str, torch.nn.Parameter]  # "blocks.0.attn1.to_q.lora_A.weight" -> fp32, diffusers' module names


def make(
    config: Any,
    expert: Expert,
    *,
    rank: int,
    seed: int,
    blocks: int,
    device: torch.device,
    layers: Iterable[TrainedLayer] | None = None,
) -> LoraParameters:
    """A new fp32 LoRA, in the model's order: what peft would add to the expert, made without either. On the ten linears
    of every block, or on the `layers` named, which then have ranks of their own.

    `config` is the diffusers config. B starts at zero, A uniform in +-1/sqrt(in), keyed by seed, expert and name.
    """
    out: LoraParameters = {}
    ranks = None if layers is None else {layer.name: layer.rank for layer in layers}
    shapes = linear_shapes(config)
    for name, linear in ((f"blocks.{block}.{linear}", linear) for block in range(blocks) for linear in LINEARS):
        own = rank if ranks is None else ranks.get(name)
        if own is None:
            continue
        outputs, inputs = shapes[linear]
        limit = 1 / inputs**0.5  # Kaiming uniform with a = sqrt(5), as peft and ai-toolkit start
        start = keyed_rng(seed, "lora", expert, name).uniform(-limit, limit, (own, inputs)).astype(np.float32)
        out[f"{name}.lora_A.weight"] = torch.nn.Parameter(torch.from_numpy(start).to(device))
        out[f"{name}.lora_B.weight"] = torch.nn.Parameter(torch.zeros((outputs, own), device=device))
    return out


def by_block(parameters: LoraParameters, blocks: int) -> list[Lora]:
    """The same parameters as the executor takes them: by block and linear, (A, B). A linear that does not train is not
    there."""
    return [
        {
            name: (parameters[f"blocks.{i}.{name}.lora_A.weight"], parameters[f"blocks.{i}.{name}.lora_B.weight"])
            for name in LINEARS
            if f"blocks.{i}.{name}.lora_A.weight" in parameters
        }
        for i in range(blocks)
    ]


@torch.no_grad()
def load_tensors(parameters: LoraParameters, tensors: dict[str, torch.Tensor]) -> None:
    """Copy saved fp32 tensors into a LoRA's parameters; both by the names of `make`."""
    assert parameters.keys() == tensors.keys(), sorted(parameters.keys() ^ tensors.keys())[:4]
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def wan_name(module: str) -> str:
    """`blocks.0.attn1.to_q` -> `blocks.0.self_attn.q`."""
    for diffusers_name, name in _WAN_NAMES:
        module = module.replace(diffusers_name, name)
    return module


def save_lora(
    path: Path,
    tensors: dict[str, torch.Tensor],
    *,
    job: Job,
    base: BaseModel,
    expert: Expert,
    step: int,
    clips: TrainedOn | None = None,
    origin: Mapping[str, str] | None = None,
) -> None:
    """Write one expert's LoRA file (names as in `make`) with what a user may ask of it later in its metadata; `origin`
    is what that says of where the LoRA began.

    alpha / rank is folded into B in fp32, before it is rounded to `save.dtype`. So no alpha tensor is needed: without
    one every loader takes alpha = rank, also a loader that would not read it.
    """
    dtype, scale = DTYPES[job.save.dtype], scale_of(job, expert)
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".lora_")
        folded = tensor.detach() * scale if kind == "B.weight" and scale != 1 else tensor.detach()
        # rounded on the card, then copied: both in one call took 4 ms a tensor, a copy alone takes 0.2
        out[f"diffusion_model.{wan_name(module)}.lora_{kind}"] = folded.to(dtype).to("cpu").contiguous()
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name)
    metadata = lora_metadata(job, base, expert, step=step, rank=rank, clips=clips)
    save_tensors(path, out, metadata | dict(origin or {}))


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as f:
        return f.metadata() or {}


def is_whole(path: Path) -> bool:
    """Whether the file is there and as long as its header says: a power cut may leave less."""
    try:
        read_metadata(path)
    except (FileNotFoundError, SafetensorError):
        return False
    return True
