"""A base model as ComfyUI keeps it: one file per expert, one for the text encoder, one for the VAE. No torch.

Names of tensors are those of Wan's own code, with or without the prefix `model.diffusion_model.`. Weights may be e4m3 with
a scale beside them (`X.scale_weight`, newer `X.weight_scale`: weight = stored * scale); `scaled_fp8`, `X.scale_input` /
`X.input_scale` and `X.comfy_quant` are marks for ComfyUI's own kernels.
"""

import re
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from presets.headers import TensorPlace

SUBFOLDERS = ("", "diffusion_models", "unet", "text_encoders", "clip", "vae")  # of ComfyUI's models folder; the first is the folder itself
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
WEIGHT_SCALES = ("scale_weight", "weight_scale")
MARKS = ("scale_input", "input_scale", "comfy_quant", "scaled_fp8")
TOKENIZER = "spiece_model"  # the SentencePiece model, as bytes, inside the text encoder's file
HEAD_SIZE = 128  # of every Wan model
# What a file's name must say, then what it should say when several do.
WANTED = {
    "transformer": ("high_?noise", ("i2v", "14b|a14b")),
    "transformer_2": ("low_?noise", ("i2v", "14b|a14b")),
    "text_encoder": ("umt5", ()),
    "vae": ("vae", ("wan", r"2[._]1")),
}
CALLED = {"transformer": "the high noise expert", "transformer_2": "the low noise expert", "text_encoder": "the text encoder", "vae": "the VAE"}
EXAMPLES = {
    "transformer": "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", "transformer_2": "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors",
    "text_encoder": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "vae": "wan_2.1_vae.safetensors",
}  # fmt: skip


class SingleFiles(Struct, kw_only=True):
    """The files found in a folder, by diffusers' names of the parts."""

    files: dict[str, Path] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # parts without a file
    unclear: dict[str, list[Path]] = field(default_factory=dict)  # parts with several


def find_single_files(folder: Path) -> SingleFiles | None:
    """The four files in `folder` or in the subfolders that ComfyUI sorts them into. None when no file names an expert."""
    found = SingleFiles()
    files = sorted(f for sub in SUBFOLDERS for f in (folder / sub).glob("*.safetensors") if "lora" not in f.name.lower())
    for part, (needed, hints) in WANTED.items():
        fits = [f for f in files if re.search(needed, f.name.lower())]
        for hint in hints:
            if len(fits) > 1:
                fits = [f for f in fits if re.search(hint, f.name.lower())] or fits
        if len(fits) == 1:
            found.files[part] = fits[0]
        elif fits:
            found.unclear[part] = fits
        else:
            found.missing.append(part)
    return None if {"transformer", "transformer_2"} <= set(found.missing) else found


def complaints(found: SingleFiles, folder: Path) -> list[tuple[str, str]]:
    """(what is wrong, how to fix it) of the parts that have no file or several."""
    out = []
    if found.missing:
        names = ", ".join(f"{CALLED[p]} (such as {EXAMPLES[p]})" for p in found.missing)
        out.append((f"the folder {folder} holds ComfyUI files, but lacks {names}", "Put the files, or links to them, into the folder"))
    for part, files in found.unclear.items():
        names = ", ".join(f.relative_to(folder).as_posix() for f in files)
        out.append((f"the folder {folder} has several files for {CALLED[part]}: {names}", "Make a folder with links to the four files that belong together"))
    return out


def plain_names(tensors: dict[str, TensorPlace]) -> dict[str, TensorPlace]:
    """The same tensors without the prefix of their names."""
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), "")
    return {name.removeprefix(prefix): place for name, place in tensors.items()}


def is_weight(name: str) -> bool:
    """Whether a tensor belongs to the model; the others say how it is stored."""
    last = name.rpartition(".")[2]
    return last not in WEIGHT_SCALES and last not in MARKS and name != TOKENIZER


def expert_config(tensors: dict[str, TensorPlace]) -> dict[str, Any]:
    """The configuration of an expert (diffusers' names) from its tensors' shapes. Raises KeyError naming the tensor that tells no shape."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != dims:
            raise KeyError(name)
        return tensors[name].shape

    width, inputs, *patch = shape("patch_embedding.weight", 5)
    (outputs,) = shape("head.head.bias", 1)
    layers = 1 + max((int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    return {
        "patch_size": patch, "num_attention_heads": width // HEAD_SIZE, "attention_head_dim": HEAD_SIZE, "in_channels": inputs,
        "out_channels": outputs // (patch[0] * patch[1] * patch[2]), "text_dim": shape("text_embedding.0.weight", 2)[1], "freq_dim": shape("time_embedding.0.weight", 2)[1],
        "ffn_dim": shape("blocks.0.ffn.0.weight", 2)[0], "num_layers": layers, "cross_attn_norm": "blocks.0.norm3.weight" in tensors,
        "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "image_dim": None, "added_kv_proj_dim": None, "rope_max_seq_len": 1024,
    }  # fmt: skip
