"""A LoRA trained on the same base as people keep it: a diffusers folder, Wan's own repository, ComfyUI's fp8_scaled
files and GGUF. The losses are equal within the error of the base's own quantization, and the files load by ComfyUI's
rule."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import load_file

from engine.demo.tiny_base import build_tiny
from engine.run import run_job
from presets.base.layouts import EXPERT_PART
from presets.job.expert_schedule import EXPERTS
from presets.job.toml_file import load_job, save_job
from tests.helpers.comfy_files import (
    expert_name,
    write_expert,
    write_gguf_expert,
    write_official,
    write_vae,
)
from tests.helpers.jobs import of_kind, write_image_job
from tests.helpers.tiers import thorough

pytestmark = pytest.mark.process  # it trains

# relative, of each step's loss: what a base of 8 bits costs, with some room
WITHIN = {"official": 0.0, "comfy": 0.01, "gguf": 0.001}
NAMES = {
    e: f"diffusion_models/Wan2_2-I2V-A14B-{e.split('_')[0].upper()}_fp8_e4m3fn_scaled_KJ.safetensors" for e in EXPERTS
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    base = build_tiny(place / "diffusers", heads=1, head_dim=128)
    torch.manual_seed(5)
    shutil.rmtree(base / "vae")
    AutoencoderKLWan(base_dim=4).save_pretrained(base / "vae")
    write_official(place / "official", base)
    for expert in EXPERTS:
        write_expert(place / "comfy" / NAMES[expert], base / EXPERT_PART[expert], "fp8_scaled")
        side = {"high_noise": "HighNoise", "low_noise": "LowNoise"}[expert]
        write_gguf_expert(place / "gguf" / side / f"Wan2.2-{side}-Q8_0.gguf", base / EXPERT_PART[expert], "Q8_0")
    write_vae(
        place / "comfy" / "vae" / "Wan2_1_VAE_bf16.safetensors",
        load_file(base / "vae" / "diffusion_pytorch_model.safetensors"),
    )
    shutil.copytree(base / "vae", place / "gguf" / "vae")
    return {name: place / name for name in ("diffusers", "official", "comfy", "gguf")}


def losses(folder: Path, base: Path, encoder: Path) -> list[float]:
    path = write_image_job(folder, base, prompts=0, steps=4)
    if base.name in ("comfy", "gguf"):
        job = load_job(path)
        job.model.text_encoder = str(encoder)
        save_job(job, path)
    assert 'boundary = "model"' in path.read_text()
    assert run_job(path, None, resume=False, workers=0, device="cpu") == 0
    return [step["loss"] for step in of_kind(folder / "runs" / "t", "step")]


@pytest.fixture(scope="module")
def plain(bases, tmp_path_factory) -> list[float]:
    return losses(tmp_path_factory.mktemp("plain"), bases["diffusers"], bases["diffusers"])


# test_other_layouts has the files of all of them
@pytest.mark.parametrize("layout", [*thorough("comfy"), *(layout for layout in WITHIN if layout != "comfy")])
def test_the_same_losses(bases, plain, tmp_path, layout):
    ours = losses(tmp_path, bases[layout], bases["diffusers"])
    assert len(ours) == len(plain) == 4
    if layout == "official":
        assert ours == plain
    else:
        assert all(abs(a - b) <= WITHIN[layout] * b for a, b in zip(ours, plain, strict=True)), (ours, plain)
        assert ours != plain, "it was not read from the quantized files"
    for expert in EXPERTS:
        stored = load_file(bases["diffusers"] / EXPERT_PART[expert] / "diffusion_pytorch_model.safetensors")
        linears = {expert_name(n).removesuffix(".weight") for n in stored if re.search(r"blocks.*(to_|ffn).*weight", n)}
        with safe_open(tmp_path / "runs" / "t" / f"t_{expert}.safetensors", "pt") as f:
            keys = set(f.keys())
        ends = {k: k.removeprefix("diffusion_model.") for k in keys}
        assert all(k.startswith("diffusion_model.") for k in keys)
        modules = {re.sub(r"\.(lora_[AB]\.weight|alpha)$", "", name) for name in ends.values()}
        assert modules == linears and all(f"diffusion_model.{m}.lora_{s}.weight" in keys for m in modules for s in "AB")
