"""The LoRA that trains, of one expert: laid out by peft, saved under the names that ComfyUI and diffusers both load.

File keys are Wan's own module names (`diffusion_model.blocks.0.self_attn.q.lora_A.weight`), one file per expert.
lora_A is (rank, in), lora_B (out, rank); the branch adds alpha / rank * B A x. What the files say of themselves is
`engine.adapters.lora_metadata`'s. LoRAs that are finished and run beside this one are read by
`engine.adapters.lora_reader`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open

from engine.adapters.lora_metadata import TrainedOn, lora_metadata
from engine.adapters.tensor_file import save_tensors
from engine.system.keyed_random import keyed_rng
from engine.wan.block import LINEARS, Lora
from engine.weights.base_model import BaseModel
from presets.job.expert_schedule import Expert
from presets.job.lora_layers import TrainedLayer, scale_of
from presets.job.schema import Job

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]  # ten linears per block, attn1 and attn2
ADAPTER = "default"
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
    alpha: float,
    seed: int,
    blocks: int,
    device: torch.device,
    layers: Iterable[TrainedLayer] | None = None,
) -> LoraParameters:
    """A new fp32 LoRA: what peft would add to the expert, made without the expert. On the ten linears of every block,
    or on the `layers` named, which then have ranks of their own.

    peft decides modules and shapes on a model without memory (`config` is the diffusers config). B starts at zero, A
    uniform in +-1/sqrt(in), keyed by seed, expert and name.
    """
    out: LoraParameters = {}
    named = None if layers is None else tuple(layers)
    shape = {key: value for key, value in config.items() if not key.startswith("_")}  # but where it came from
    for name, (down, up) in _modules(json.dumps(shape | {"num_layers": blocks}), rank, alpha, named).items():
        limit = 1 / down[1] ** 0.5  # Kaiming uniform with a = sqrt(5), as peft and ai-toolkit start
        start = keyed_rng(seed, "lora", expert, name).uniform(-limit, limit, down).astype(np.float32)
        out[f"{name}.lora_A.weight"] = torch.nn.Parameter(torch.from_numpy(start).to(device))
        out[f"{name}.lora_B.weight"] = torch.nn.Parameter(torch.zeros(up, device=device))
    return out


Shape = tuple[int, ...]


@cache  # both experts have mostly the same
def _modules(
    config: str, rank: int, alpha: float, layers: tuple[TrainedLayer, ...] | None
) -> Mapping[str, tuple[Shape, Shape]]:
    """Shapes of A and B of each module that peft would make, by name, in the model's order."""
    with torch.device("meta"):
        model = WanTransformer3DModel.from_config(json.loads(config))
        model.add_adapter(peft_config(rank, alpha, layers), adapter_name=ADAPTER)
    return MappingProxyType(
        {
            name: (tuple(layer.lora_A[ADAPTER].weight.shape), tuple(layer.lora_B[ADAPTER].weight.shape))
            for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)
        }
    )


def peft_config(rank: int, alpha: float, layers: tuple[TrainedLayer, ...] | None) -> LoraConfig:
    if layers is None:
        return LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights=False)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=[layer.name for layer in layers],
        rank_pattern={re.escape(layer.name): layer.rank for layer in layers if layer.rank != rank},
        alpha_pattern={re.escape(layer.name): layer.alpha for layer in layers if layer.alpha != alpha},
        init_lora_weights=False,
    )


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
        out[f"diffusion_model.{wan_name(module)}.lora_{kind}"] = folded.to("cpu", dtype).contiguous()
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
