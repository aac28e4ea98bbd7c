"""ComfyUI's files as a base model: found by name, judged by their headers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from presets.model import ModelFacts, read_model, resolve_model

HIGH, LOW = "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors"
TEXT, VAE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors"


def expert(channels: int = 36, prefix: str = "") -> dict[str, np.ndarray]:
    shapes = {
        "patch_embedding.weight": (256, channels, 1, 2, 2), "head.head.bias": (64,), "text_embedding.0.weight": (256, 32), "time_embedding.0.weight": (256, 64),
        "blocks.0.ffn.0.weight": (512, 256), "blocks.2.ffn.0.weight": (512, 256), "blocks.0.norm3.weight": (256,),
    }  # fmt: skip
    tensors = {prefix + name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    return tensors | {f"{prefix}scaled_fp8": np.zeros(2, np.uint8), f"{prefix}blocks.0.ffn.0.scale_weight": np.ones((), np.float32)}


def write(folder: Path, *, prefix: str = "", high: str = HIGH, low: str = LOW, text: str = TEXT, vae: str = VAE) -> Path:
    parts = {high: expert(prefix=prefix), low: expert(prefix=prefix), text: {"shared.weight": np.zeros((4, 2), np.float16), "spiece_model": np.zeros(9, np.uint8)}, vae: {"conv1.weight": np.zeros(3, np.float32)}}
    for name, tensors in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name)
    return folder


def read(folder: Path) -> ModelFacts:
    return read_model(str(folder), Path("/"))


def problem(folder: Path) -> str:
    """The message of the only problem beside the missing boundary."""
    (found,) = [p for p in read(folder).problems if p.code != "model-no-boundary"]
    assert found.severity == "error" and found.field == "model.path" and found.fix
    return f"{found.code}: {found.message}"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_folder_of_four_files(tmp_path, prefix):
    facts = read(write(tmp_path, prefix=prefix))
    assert (facts.in_channels, facts.out_channels, facts.num_layers, facts.width, facts.ffn, facts.boundary_ratio) == (36, 16, 3, 256, 512, None)
    weights = sum(t.size for n, t in expert().items() if n not in ("scaled_fp8", "blocks.0.ffn.0.scale_weight"))
    assert facts.parameters == 2 * weights and facts.parts["transformer"].parameters == weights and facts.parts["text_encoder"].parameters == 8
    assert facts.size_bytes == sum(f.stat().st_size for f in tmp_path.iterdir()) and facts.local and facts.missing == []
    (boundary,) = facts.problems
    assert boundary.code == "model-no-boundary" and boundary.set == {"model.boundary": 0.9} and boundary.severity == "error"
    assert resolve_model(str(tmp_path), Path("/")) == tmp_path


def test_comfyui_own_folders_and_other_models_beside(tmp_path):
    write(tmp_path, high=f"diffusion_models/{HIGH}", low=f"diffusion_models/{LOW}", text=f"text_encoders/{TEXT}", vae=f"vae/{VAE}")
    for extra in (f"diffusion_models/{HIGH.replace('i2v', 't2v')}", "diffusion_models/my_lora_high_noise.safetensors", "vae/ae.safetensors", "vae/wan2.2_vae.safetensors"):
        save_file({"x": np.zeros(1)}, tmp_path / extra)
    assert [p.code for p in read(tmp_path).problems] == ["model-no-boundary"]


def test_several_files_for_one_part(tmp_path):
    write(tmp_path)
    shutil.copy(tmp_path / HIGH, tmp_path / HIGH.replace("fp8_scaled", "fp16"))
    said = problem(tmp_path)
    assert "several files for the high noise expert" in said and HIGH in said and "fp16" in said


@pytest.mark.parametrize(("name", "words"), [(LOW, "low noise expert"), (TEXT, "text encoder"), (VAE, "VAE")])
def test_a_missing_file_is_called_by_its_part(tmp_path, name, words):
    (write(tmp_path) / name).unlink()
    assert any(p.code == "model-incomplete" and words in p.message and name in p.message for p in read(tmp_path).problems)


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
    assert "no tokenizer" in problem(tmp_path)
