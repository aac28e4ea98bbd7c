"""ComfyUI's files as a base model: found by name, judged by their headers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from presets.base.composition import NamedBase, compose
from presets.base.model_facts import ModelFacts, read_model

HIGH, LOW = "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors"
TEXT, VAE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors"


def expert(channels: int = 36, prefix: str = "") -> dict[str, np.ndarray]:
    shapes = {
        "patch_embedding.weight": (256, channels, 1, 2, 2),
        "head.head.bias": (64,),
        "text_embedding.0.weight": (256, 32),
        "time_embedding.0.weight": (256, 64),
        "blocks.0.ffn.0.weight": (512, 256),
        "blocks.2.ffn.0.weight": (512, 256),
        "blocks.0.norm3.weight": (256,),
    }
    tensors = {prefix + name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    return tensors | {
        f"{prefix}scaled_fp8": np.zeros(2, np.uint8),
        f"{prefix}blocks.0.ffn.0.scale_weight": np.ones((), np.float32),
    }


def encoder(**more: np.ndarray) -> dict[str, np.ndarray]:
    """UMT5's first block, as wide as the experts take it."""
    block = "encoder.block.0.layer"
    shapes = {
        "shared.weight": (40, 32),
        f"{block}.0.SelfAttention.relative_attention_bias.weight": (32, 4),
        f"{block}.0.SelfAttention.q.weight": (32, 32),
        f"{block}.1.DenseReluDense.wi_0.weight": (64, 32),
    }
    return (
        {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
        | {"spiece_model": np.zeros(9, np.uint8)}
        | more
    )


def autoencoder(channels: int = 16) -> dict[str, np.ndarray]:
    return {
        "encoder.conv1.weight": np.zeros((8, 3, 3, 3, 3), np.float32),
        "conv2.weight": np.zeros((channels, channels, 1, 1, 1), np.float32),
    }


def write(
    folder: Path, *, prefix: str = "", high: str = HIGH, low: str = LOW, text: str = TEXT, vae: str = VAE
) -> Path:
    parts = {high: expert(prefix=prefix), low: expert(prefix=prefix), text: encoder(), vae: autoencoder()}
    for name, tensors in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name)
    return folder


def read(folder: Path) -> ModelFacts:
    return read_model(NamedBase(path=str(folder)), Path("/"))


def problem(folder: Path) -> str:
    """The message of the only problem."""
    (found,) = read(folder).problems
    assert found.severity == "error" and found.field.startswith("model.") and found.fix
    return f"{found.code}: {found.message}"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_folder_of_four_files(tmp_path, prefix):
    facts = read(write(tmp_path, prefix=prefix))
    assert (facts.in_channels, facts.out_channels, facts.num_layers, facts.width, facts.ffn, facts.boundary_ratio) == (
        36,
        16,
        3,
        256,
        512,
        0.9,
    )
    weights = sum(t.size for n, t in expert().items() if n not in ("scaled_fp8", "blocks.0.ffn.0.scale_weight"))
    assert (
        facts.parameters == 2 * weights
        and facts.parts["transformer"].parameters == weights
        and facts.parts["text_encoder"].parameters == sum(t.size for n, t in encoder().items() if n != "spiece_model")
    )
    assert facts.size_bytes == sum(f.stat().st_size for f in tmp_path.iterdir()) and facts.local and facts.missing == []
    assert facts.problems == []  # two experts with 36 channels are I2V A14B


def test_comfyui_own_folders_and_other_models_beside(tmp_path):
    write(
        tmp_path,
        high=f"diffusion_models/{HIGH}",
        low=f"diffusion_models/{LOW}",
        text=f"text_encoders/{TEXT}",
        vae=f"vae/{VAE}",
    )
    for extra in (
        f"diffusion_models/{HIGH.replace('i2v', 't2v')}",
        "diffusion_models/my_lora_high_noise.safetensors",
        "vae/ae.safetensors",
        "vae/wan2.2_vae.safetensors",
    ):
        save_file({"x": np.zeros(1)}, tmp_path / extra)
    assert read(tmp_path).problems == []


def test_several_files_for_one_part(tmp_path):
    write(tmp_path)
    shutil.copy(tmp_path / HIGH, tmp_path / HIGH.replace("fp8_scaled", "fp16"))
    said = problem(tmp_path)
    assert "several files for the high noise expert" in said and HIGH in said and "fp16" in said


def test_a_missing_expert_is_called_by_its_name(tmp_path):
    (write(tmp_path) / LOW).unlink()
    said = problem(tmp_path)
    assert said.startswith("model-incomplete") and "low noise expert" in said and LOW in said


@pytest.mark.parametrize(
    ("name", "part", "repo"),
    [(TEXT, "text_encoder", "ai-toolkit/umt5_xxl_encoder"), (VAE, "vae", "ai-toolkit/wan2.1-vae")],
)
def test_a_missing_file_of_another_part_comes_from_the_known_repository(tmp_path, name, part, repo):
    (write(tmp_path / "comfy") / name).unlink()
    composed = compose(NamedBase(path="comfy"), tmp_path, cache=tmp_path / "hub")
    assert composed.places[part].repo == repo and composed.to_ask == [repo] and composed.problems == []
    facts = read(tmp_path / "comfy")
    assert not facts.local and facts.problems == [] and repo in facts.absent[0] and facts.parameters > 0


def test_what_is_wrong_inside_a_file(tmp_path):
    write(tmp_path)
    save_file(expert(16), tmp_path / HIGH)
    assert "takes 16 input channels" in problem(tmp_path)
    save_file({"a": np.zeros(1)}, tmp_path / HIGH)
    assert "no expert of Wan: it has no tensor patch_embedding.weight" in problem(tmp_path)
    write(tmp_path)
    (tmp_path / LOW).write_bytes((tmp_path / LOW).read_bytes()[:-3])
    assert f"model-corrupt: {LOW} is truncated" in problem(tmp_path)
    write(tmp_path)
    save_file({"shared.weight": np.zeros(2)}, tmp_path / TEXT)
    assert "text-encoder-wrong" in problem(tmp_path) and "shared.weight" in problem(tmp_path)
    save_file(encoder(**{"encoder.block.1.layer.0.SelfAttention.q.weight": np.zeros((32, 32))}), tmp_path / TEXT)
    assert "as in T5" in problem(tmp_path)
    save_file(encoder(**{"shared.weight": np.zeros((40, 16))}), tmp_path / TEXT)
    assert "it is 16 wide, and the experts take 32" in problem(tmp_path)
    write(tmp_path)
    save_file(autoencoder(48), tmp_path / VAE)
    assert "vae-wrong" in problem(tmp_path) and "48 latent channels, as the VAE of the 5B model" in problem(tmp_path)
    save_file({"x": np.zeros(1)}, tmp_path / VAE)
    assert "not the VAE of Wan 2.1: it has no tensor encoder.conv1.weight" in problem(tmp_path)
