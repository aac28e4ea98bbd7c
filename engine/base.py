"""The frozen base: Wan 2.2 I2V A14B as a diffusers folder, loaded part by part."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from presets.errors import UserError
from presets.job import Job
from presets.model import looks_like_hub_id, read_model, resolve_model

Expert = Literal["high_noise", "low_noise"]
EXPERTS: tuple[Expert, Expert] = ("high_noise", "low_noise")
SUBFOLDER: dict[Expert, str] = {"high_noise": "transformer", "low_noise": "transformer_2"}


@dataclass(frozen=True)
class BaseFolder:
    """A complete diffusers folder on this disk, and what the run needs to know of it before any weight is read."""

    path: Path
    boundary: float  # sigma that divides the experts
    flow_shift: float  # of the model's own scheduler; previews use it
    identity: str  # changes when any weight file changes


def find_base(job: Job, base: Path) -> BaseFolder:
    """The folder of `model.path`, downloaded from the Hub first when it is an id. Raises UserError."""
    path = resolve_model(job.model.path, base)
    if path is None:
        if not looks_like_hub_id(job.model.path):
            raise UserError("no such model folder", where=f"model.path = {job.model.path!r}", fix="Give a diffusers folder or a Hub id")
        path = _download(job)
        if problems := read_model(str(path), base).problems:  # a local folder was checked with the job
            raise UserError(problems[0].message, where=str(path), fix=problems[0].fix)
    index = json.loads((path / "model_index.json").read_text())
    boundary = index.get("boundary_ratio") if job.model.boundary == "model" else job.model.boundary
    if boundary is None:
        raise UserError("the model names no boundary_ratio", where=str(path), fix="Set model.boundary = 0.9")
    scheduler = json.loads((path / "scheduler" / "scheduler_config.json").read_text())
    return BaseFolder(path, float(boundary), float(scheduler.get("flow_shift") or scheduler.get("shift") or 5.0), _identity(path))


def _download(job: Job) -> Path:
    from huggingface_hub import snapshot_download

    experts = [SUBFOLDER[e] for e in needed_experts(job)]
    parts = [*experts, "vae", "text_encoder", "tokenizer", "scheduler"]
    try:
        return Path(snapshot_download(job.model.path, allow_patterns=["model_index.json", *(f"{p}/*" for p in parts)]))
    except Exception as e:  # the Hub client raises a dozen unrelated classes: gone, gated, offline, disk full
        raise UserError(f"could not download the model: {e}", where=f"model.path = {job.model.path!r}", fix="Check the network and the id, or give a local folder") from e


def trained_experts(job: Job) -> list[Expert]:
    """The experts that learn, high noise first."""
    return [e for e in EXPERTS if getattr(job.multistage, e)]


def needed_experts(job: Job) -> list[Expert]:
    """The experts that must be loaded: previews go through both."""
    return list(EXPERTS) if job.sample.prompts else trained_experts(job)


def _identity(path: Path) -> str:
    """Hash of every weight file's name, size, header and 64 sampled pages: enough to tell two bases apart in a second."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as f:
            header = int.from_bytes(f.read(8), "little")
            digest.update(f.read(min(header, size)))
            for i in range(64):
                f.seek(size * i // 64)
                digest.update(f.read(4096))
    return digest.hexdigest()


def load_expert(base: BaseFolder, expert: Expert, *, device: torch.device, dtype: torch.dtype) -> WanTransformer3DModel:
    """One frozen expert in eval mode. diffusers keeps the time embedder, norms and modulation tables in fp32."""
    model: Any = WanTransformer3DModel.from_pretrained(base.path, subfolder=SUBFOLDER[expert], torch_dtype=dtype)
    return model.requires_grad_(False).eval().to(device)


def load_vae(base: BaseFolder, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKLWan:
    model: Any = AutoencoderKLWan.from_pretrained(base.path, subfolder="vae", torch_dtype=dtype)
    return model.requires_grad_(False).eval().to(device)
