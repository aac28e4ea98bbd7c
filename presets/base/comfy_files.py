"""A base model as ComfyUI keeps it: one file per expert, one for the text encoder, one for the VAE. No torch.

Names of tensors are those of Wan's own code, with or without the prefix `model.diffusion_model.`. Weights may be e4m3
with a scale beside them (`X.scale_weight`, newer `X.weight_scale`: weight = stored * scale); `scaled_fp8`,
`X.scale_input` / `X.input_scale` and `X.comfy_quant` are marks for ComfyUI's own kernels.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from presets.base.safetensors_header import Damaged, TensorPlace, json_object, read_header

# of ComfyUI's models folder; the first is the folder itself
SUBFOLDERS = ("", "diffusion_models", "unet", "text_encoders", "clip", "vae")
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
WEIGHT_SCALES = ("scale_weight", "weight_scale")
MARKS = ("scale_input", "input_scale", "comfy_quant", "scaled_fp8")
TOKENIZER = "spiece_model"  # the SentencePiece model, as bytes, inside the text encoder's file
# the name by which a single file of the VAE shows that it holds diffusers' names
DIFFUSERS_VAE = "encoder.conv_in.weight"
HEAD_SIZE = 128  # of every Wan model
# What a file's name must say, then what it should say when several do.
WANTED = {
    "transformer": ("high_?noise", ("i2v", "14b|a14b")),
    "transformer_2": ("low_?noise", ("i2v", "14b|a14b")),
    "text_encoder": ("umt5", ()),
    "vae": ("vae", ("wan", r"2[._]1")),
}
CALLED = {
    "transformer": "the high noise expert",
    "transformer_2": "the low noise expert",
    "text_encoder": "the text encoder",
    "vae": "the VAE",
}
EXAMPLES = {
    "transformer": "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
    "transformer_2": "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors",
    "text_encoder": "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "vae": "wan_2.1_vae.safetensors",
}


class SingleFiles(Struct, kw_only=True):
    """The files found among those of a source, by diffusers' names of the parts. Names are relative to the source."""

    files: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # parts without a file
    unclear: dict[str, list[str]] = field(default_factory=dict)  # parts with several

    @property
    def names_experts(self) -> bool:
        """Whether a file's name says that it is an expert: then the source is ComfyUI's."""
        return not {"transformer", "transformer_2"} <= set(self.missing)


def find_single_files(names: Collection[str]) -> SingleFiles:
    """The four files at the top of a source or in the subfolders that ComfyUI sorts them into."""
    found = SingleFiles()
    files = sorted(
        n
        for n in names
        if n.endswith(".safetensors")
        and n.rpartition("/")[0] in SUBFOLDERS
        and "lora" not in n.rpartition("/")[2].lower()
    )
    for part, (needed, hints) in WANTED.items():
        fits = [n for n in files if re.search(needed, n.rpartition("/")[2].lower())]
        for hint in hints:
            if len(fits) > 1:
                fits = [n for n in fits if re.search(hint, n.rpartition("/")[2].lower())] or fits
        if len(fits) == 1:
            found.files[part] = fits[0]
        elif fits:
            found.unclear[part] = fits
        else:
            found.missing.append(part)
    return found


def complaints(found: SingleFiles, where: str) -> list[tuple[str, str]]:
    """(what is wrong, how to fix it) of the experts that have no file or several."""
    out = []
    if missing := [p for p in found.missing if p.startswith("transformer")]:
        names = ", ".join(f"{CALLED[p]} (such as {EXAMPLES[p]})" for p in missing)
        out.append(
            (f"{where} holds ComfyUI files, but lacks {names}", "Put the files, or links to them, into the folder")
        )
    for part, files in found.unclear.items():
        if part.startswith("transformer"):
            out.append(
                (
                    f"{where} has several files for {CALLED[part]}: {', '.join(files)}",
                    "Make a folder with links to the files that belong together",
                )
            )
    return out


def holds_tokenizer(file: Path) -> bool:
    """Whether the text encoder's file has its tokenizer in it; True for one that cannot be read, which shows when it
    is."""
    try:
        return TOKENIZER in read_header(file)
    except (OSError, Damaged):
        return True


def plain_names(tensors: dict[str, TensorPlace]) -> dict[str, TensorPlace]:
    """The same tensors without the prefix of their names."""
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), "")
    return {name.removeprefix(prefix): place for name, place in tensors.items()}


def is_weight(name: str) -> bool:
    """Whether a tensor belongs to the model; the others say how it is stored."""
    last = name.rpartition(".")[2]
    return last not in WEIGHT_SCALES and last not in MARKS and name != TOKENIZER


def config_of(part: str, file: Path, tensors: dict[str, TensorPlace]) -> dict[str, Any]:
    """The configuration (diffusers' names) of a part that is one file. Raises KeyError naming the tensor that tells no
    shape, OSError, Damaged."""
    if part.startswith("transformer"):
        return expert_config(tensors)
    if part == "text_encoder":
        return text_config(tensors)
    beside = file.with_name("config.json")
    return json_object(beside.read_bytes()) if DIFFUSERS_VAE in tensors and beside.exists() else vae_config(tensors)


def _shape(tensors: dict[str, TensorPlace], name: str, dims: int) -> tuple[int, ...]:
    """Raises KeyError when there is no such tensor of so many dimensions."""
    if name not in tensors or len(tensors[name].shape) != dims:
        raise KeyError(name)
    return tensors[name].shape


def expert_config(tensors: dict[str, TensorPlace]) -> dict[str, Any]:
    """The configuration of an expert (diffusers' names) from its tensors' shapes. Raises KeyError naming the tensor
    that tells no shape."""

    width, inputs, *patch = _shape(tensors, "patch_embedding.weight", 5)
    (outputs,) = _shape(tensors, "head.head.bias", 1)
    layers = 1 + max((int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    return {
        "patch_size": patch,
        "num_attention_heads": width // HEAD_SIZE,
        "attention_head_dim": HEAD_SIZE,
        "in_channels": inputs,
        "out_channels": outputs // (patch[0] * patch[1] * patch[2]),
        "text_dim": _shape(tensors, "text_embedding.0.weight", 2)[1],
        "freq_dim": _shape(tensors, "time_embedding.0.weight", 2)[1],
        "ffn_dim": _shape(tensors, "blocks.0.ffn.0.weight", 2)[0],
        "num_layers": layers,
        "cross_attn_norm": "blocks.0.norm3.weight" in tensors,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
    }


def vae_config(tensors: dict[str, TensorPlace]) -> dict[str, Any]:
    """Configuration of AutoencoderKLWan: the first convolution tells the width, all else is Wan 2.1's. Raises
    KeyError."""
    first, last = (
        (DIFFUSERS_VAE, "post_quant_conv.weight")
        if DIFFUSERS_VAE in tensors
        else ("encoder.conv1.weight", "conv2.weight")
    )
    return {"base_dim": _shape(tensors, first, 5)[0], "z_dim": _shape(tensors, last, 5)[0]}


def text_config(tensors: dict[str, TensorPlace]) -> dict[str, Any]:
    """Configuration of UMT5EncoderModel from its tensors' shapes. Raises KeyError."""
    first = "encoder.block.0.layer.0.SelfAttention"
    vocabulary, width = _shape(
        tensors, "shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight", 2
    )
    buckets, heads = _shape(tensors, f"{first}.relative_attention_bias.weight", 2)
    layers = 1 + max(int(m[1]) for name in tensors if (m := re.match(r"encoder\.block\.(\d+)\.", name)))
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": _shape(tensors, f"{first}.q.weight", 2)[0] // heads,
        "num_heads": heads,
        "num_layers": layers,
        "d_ff": _shape(tensors, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2)[0],
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
