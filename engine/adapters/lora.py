"""The LoRA that trains, of one expert: laid out by peft, saved under the names that ComfyUI and diffusers both load.

File keys are Wan's own module names (`diffusion_model.blocks.0.self_attn.q.lora_A.weight`), one file per expert.
lora_A is (rank, in), lora_B (out, rank); the branch adds alpha / rank * B A x. LoRAs that are finished and run beside
this one are read by `engine.adapters.lora_reader`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.system.keyed_random import keyed_rng
from engine.wan.block import LINEARS, Lora
from engine.weights.base_model import BaseModel
from presets.job.expert_schedule import Expert, alpha_of, rank_of
from presets.job.schema import Job
from presets.job.toml_file import job_to_dict

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
    config: Any, expert: Expert, *, rank: int, alpha: float, seed: int, blocks: int, device: torch.device
) -> LoraParameters:
    """A new fp32 LoRA on the ten linears of every block: what peft would add to the expert, made without the expert.

    peft decides modules and shapes on a model without memory (`config` is the diffusers config). B starts at zero, A
    uniform in +-1/sqrt(in), keyed by seed, expert and name.
    """
    with torch.device("meta"):
        model = WanTransformer3DModel.from_config({**config, "num_layers": blocks})
        model.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights=False), adapter_name=ADAPTER
        )
    out: LoraParameters = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        limit = 1 / down.shape[1] ** 0.5  # Kaiming uniform with a = sqrt(5), as peft and ai-toolkit start
        start = keyed_rng(seed, "lora", expert, name).uniform(-limit, limit, tuple(down.shape)).astype(np.float32)
        out[f"{name}.lora_A.weight"] = torch.nn.Parameter(torch.from_numpy(start).to(device))
        out[f"{name}.lora_B.weight"] = torch.nn.Parameter(torch.zeros(up.shape, device=device))
    return out


def by_block(parameters: LoraParameters, blocks: int) -> list[Lora]:
    """The same parameters as the executor takes them: by block and linear, (A, B)."""
    return [
        {
            name: (parameters[f"blocks.{i}.{name}.lora_A.weight"], parameters[f"blocks.{i}.{name}.lora_B.weight"])
            for name in LINEARS
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
    path: Path, tensors: dict[str, torch.Tensor], *, job: Job, base: BaseModel, expert: Expert, step: int
) -> None:
    """Write one expert's LoRA file (names as in `make`) with everything a user may ask of it later in its metadata.

    An alpha tensor per module is written only when alpha differs from the rank: without one every loader takes alpha =
    rank.
    """
    dtype, rank, alpha = DTYPES[job.save.dtype], rank_of(job, expert), alpha_of(job, expert)
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".lora_")
        out[f"diffusion_model.{wan_name(module)}.lora_{kind}"] = tensor.detach().to("cpu", dtype).contiguous()
        if kind == "A.weight" and alpha != rank:
            out[f"diffusion_model.{wan_name(module)}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    tables = job_to_dict(job)
    metadata = {
        "format": "pt",
        "modelspec.architecture": "wan_2.2_i2v_a14b/lora",
        "wanlora.expert": expert,
        "wanlora.boundary": str(base.boundary),
        "wanlora.base": job.model.path,
        "wanlora.vae": base.source.places["vae"].source,
        "wanlora.text_encoder": base.source.places["text_encoder"].source,
        "wanlora.base_identity": base.identity,
        "wanlora.rank": str(rank),
        "wanlora.alpha": str(alpha),
        "wanlora.step": str(step),
        "wanlora.average": str(job.training.ema and job.save.ema).lower(),
        "wanlora.trigger": job.job.trigger,
        "wanlora.job_hash": job_hash(job),
        "wanlora.job": json.dumps(tables),
        "ss_base_model_version": "wan_2.2_i2v_14b",
        "ss_output_name": job.job.name,
    }
    save_file(out, path, metadata)


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


def job_hash(job: Job) -> str:
    return hashlib.blake2b(json.dumps(job_to_dict(job), sort_keys=True).encode(), digest_size=16).hexdigest()
