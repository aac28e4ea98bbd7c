"""The repositories that a base comes from, as the Hub has them: their file names, index files and configs, with the
tiny base's weights.

As ai-toolkit loads them (wan21.py, wan22_14b_model.py) and as listings of them show: the default repository holds two
experts in bf16 and nothing else, the encoder's has text_encoder/ and tokenizer/, the VAE's has its files at the top;
Wan-AI's is complete, with experts in fp32.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from presets.base.composition import ENCODER_REPO, VAE_REPO
from presets.job.schema import ModelPanel

EXPERTS_REPO, COMPLETE_REPO = ModelPanel().path, "Wan-AI/Wan2.2-I2V-A14B-Diffusers"
EXPERTS = ("transformer", "transformer_2")
STEMS = {"transformer": "diffusion_pytorch_model", "transformer_2": "diffusion_pytorch_model", "text_encoder": "model"}


def write_shards(part: Path, stem: str, tensors: dict[str, torch.Tensor], count: int) -> None:
    """`count` shards and their index, as save_pretrained names them."""
    part.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    weight_map = {
        name: f"{stem}-{1 + i * count // len(names):05}-of-{count:05}.safetensors" for i, name in enumerate(names)
    }
    for shard in sorted(set(weight_map.values())):
        save_file({n: tensors[n] for n in names if weight_map[n] == shard}, part / shard, metadata={"format": "pt"})
    total = sum(t.nbytes for t in tensors.values())
    (part / f"{stem}.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    )


def _card(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")


def _part(tiny: Path, part: str, folder: Path, *, shards: int, dtype: torch.dtype) -> None:
    tensors = {name: t.to(dtype) for name, t in load_file(tiny / part / f"{STEMS[part]}.safetensors").items()}
    write_shards(folder / part, STEMS[part], tensors, shards)
    shutil.copy(tiny / part / "config.json", folder / part / "config.json")


def experts_repo(tiny: Path, folder: Path) -> Path:
    """ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16."""
    _card(folder)
    for part in EXPERTS:
        _part(tiny, part, folder, shards=3, dtype=torch.bfloat16)
    return folder


def encoder_repo(tiny: Path, folder: Path) -> Path:
    """ai-toolkit/umt5_xxl_encoder."""
    _card(folder)
    _part(tiny, "text_encoder", folder, shards=3, dtype=torch.bfloat16)
    shutil.copytree(tiny / "tokenizer", folder / "tokenizer")
    return folder


def vae_repo(tiny: Path, folder: Path) -> Path:
    """ai-toolkit/wan2.1-vae."""
    _card(folder)
    for file in (tiny / "vae").iterdir():
        shutil.copy(file, folder / file.name)
    return folder


def complete_repo(tiny: Path, folder: Path) -> Path:
    """Wan-AI/Wan2.2-I2V-A14B-Diffusers: experts in fp32, 12 shards each."""
    _card(folder)
    for part in EXPERTS:
        _part(tiny, part, folder, shards=12, dtype=torch.float32)
    _part(tiny, "text_encoder", folder, shards=3, dtype=torch.bfloat16)
    for part in ("vae", "tokenizer", "scheduler"):
        shutil.copytree(tiny / part, folder / part)
    shutil.copy(tiny / "model_index.json", folder / "model_index.json")
    (folder / "assets").mkdir()
    (folder / "assets" / "logo.png").write_bytes(b"not needed")
    return folder


def all_repos(tiny: Path, place: Path) -> dict[str, Path]:
    made = {EXPERTS_REPO: experts_repo, ENCODER_REPO: encoder_repo, VAE_REPO: vae_repo, COMPLETE_REPO: complete_repo}
    return {repo: make(tiny, place / repo.replace("/", "--")) for repo, make in made.items()}
