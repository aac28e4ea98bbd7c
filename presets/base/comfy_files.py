"""What a file of a base model holds, as ComfyUI, its GGUF loader and Wan's own repository keep it: names of tensors,
the configuration that their shapes tell, and the forms of weights that cannot be read. No torch.

Names of tensors are those of Wan's own code, with or without the prefix `model.diffusion_model.`. Weights may be e4m3
with a scale beside them (`X.scale_weight`, newer `X.weight_scale`: weight = stored * scale); `scaled_fp8`,
`X.scale_input` / `X.input_scale` and `X.comfy_quant` are marks for ComfyUI's own kernels. The text encoder comes under
transformers' names, Wan's own, or llama.cpp's. Which file is which part: `single_files`.
"""

import re
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from presets.base.safetensors_header import Damaged, TensorPlace
from presets.base.tensor_files import FLOATS, QUANTS, read_tensors

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
WEIGHT_SCALES = ("scale_weight", "weight_scale")
MARKS = ("scale_input", "input_scale", "comfy_quant", "scaled_fp8")
TOKENIZER = "spiece_model"  # the SentencePiece model, as bytes, inside the text encoder's file
# the name by which a single file of the VAE shows that it holds diffusers' names
DIFFUSERS_VAE = "encoder.conv_in.weight"
DIFFUSERS_EXPERT = "condition_embedder.time_proj.weight"  # the same of an expert
HEAD_SIZE = 128  # of every Wan model
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
# Wan's own config.json -> diffusers' keys
CONFIG_KEYS = {
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "num_heads": "num_attention_heads",
    "num_layers": "num_layers",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "eps": "eps",
}
# What follows a block's number, under Wan's own names of the encoder and under llama.cpp's -> transformers' name.
_WAN_ENCODER = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{n}": f"layer.0.SelfAttention.{n}" for n in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_LLAMA_ENCODER = {
    "attn_norm": "layer.0.layer_norm",
    **{f"attn_{n}": f"layer.0.SelfAttention.{n}" for n in "qkvo"},
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
_OUTSIDE_ENCODER = {
    "token_embedding": "shared",
    "token_embd": "shared",
    "norm": "encoder.final_layer_norm",
    "enc.output_norm": "encoder.final_layer_norm",
}
# A name by which a form of weights shows -> what it is called.
FORMS = {
    "weight_scale_2": "nvfp4",
    "qweight": "packed integers, as of SVDQuant or GPTQ",
    "absmax": "bitsandbytes' 4 or 8 bits",
    "quant_map": "bitsandbytes' 4 or 8 bits",
}
READABLE_FIX = "Take the bf16, fp16, fp8_scaled or GGUF (Q8_0) file of the same model"
Anything = TypeVar("Anything")


def holds_tokenizer(file: Path) -> bool:
    """Whether the text encoder's file has its tokenizer in it; True for one that cannot be read, which shows when it
    is."""
    try:
        return TOKENIZER in read_tensors(file)
    except (OSError, Damaged):
        return True


def plain_names(tensors: Mapping[str, Anything]) -> dict[str, Anything]:
    """The same tensors without the prefix of their names."""
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), "")
    return {name.removeprefix(prefix): place for name, place in tensors.items()}


def is_weight(name: str) -> bool:
    """Whether a tensor belongs to the model; the others say how it is stored."""
    last = name.rpartition(".")[2]
    return last not in WEIGHT_SCALES and last not in MARKS and name != TOKENIZER


def encoder_names(names: Collection[str]) -> dict[str, str]:
    """transformers' name -> stored name of every weight of the text encoder; a name that is not known stays."""
    out = {}
    for name in names:
        if not is_weight(name):
            continue
        body = name.removesuffix(".weight")
        if found := re.fullmatch(r"(blocks|enc\.blk)\.(\d+)\.(.+)", body):
            inside = (_WAN_ENCODER if found[1] == "blocks" else _LLAMA_ENCODER).get(found[3])
            ours = f"encoder.block.{found[2]}.{inside}.weight" if inside else name
        else:
            ours = f"{_OUTSIDE_ENCODER[body]}.weight" if body in _OUTSIDE_ENCODER else name
        out[ours] = name
    return out


def unreadable(tensors: Mapping[str, TensorPlace]) -> str:
    """The form in which weights are stored, where it is none that can be read; "" else. Names are without prefix."""
    lasts = {name.rpartition(".")[2] for name in tensors}
    if form := next((called for last, called in FORMS.items() if last in lasts), ""):
        return form
    for name, place in tensors.items():
        if not is_weight(name) or not name.endswith(".weight"):
            continue
        if place.dtype not in FLOATS and place.dtype not in QUANTS:
            return f"{'int8' if place.dtype == 'I8' else place.dtype} ({name})"
        scale = scale_of(name, tensors)
        if scale is not None and not fits(scale, place):
            return f"{place.dtype} with a scale of the shape {list(scale.shape)} ({name})"
    return ""


def scale_of(name: str, tensors: Mapping[str, Anything]) -> Anything | None:
    """The scale that is stored beside a weight."""
    layer = name.removesuffix(".weight")
    return next((tensors[key] for s in WEIGHT_SCALES if (key := f"{layer}.{s}") in tensors), None)


def fits(scale: TensorPlace, weight: TensorPlace) -> bool:
    """Whether a scale is one number, or one per row, of a known type."""
    return scale.dtype in FLOATS and prod(scale.shape) in (1, weight.shape[0] if weight.shape else 1)


def config_of(part: str, tensors: Mapping[str, TensorPlace], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration (diffusers' names) of a part: as its config.json has `given` it, in diffusers' keys or in Wan's
    own, else from its tensors' shapes. Raises KeyError naming the tensor that tells no shape."""
    if given is not None and not (part.startswith("transformer") and "in_dim" in given):
        return dict(given)
    if part == "text_encoder":
        return text_config({ours: tensors[theirs] for ours, theirs in encoder_names(tensors).items()})
    if part == "vae":
        return vae_config(tensors)
    config = expert_config(tensors) if tensors or given is None else {}
    told = given or {}
    config |= {ours: told[theirs] for theirs, ours in CONFIG_KEYS.items() if theirs in told}
    if tensors and "num_heads" not in told and _shape(tensors, "patch_embedding.weight", 5)[0] % HEAD_SIZE:
        raise KeyError("patch_embedding.weight")  # nothing tells how wide its heads are
    width, heads = told.get("dim"), told.get("num_heads")
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        config["attention_head_dim"] = width // heads
    return config


def _shape(tensors: Mapping[str, TensorPlace], name: str, dims: int) -> tuple[int, ...]:
    """Raises KeyError when there is no such tensor of so many dimensions."""
    if name not in tensors or len(tensors[name].shape) != dims:
        raise KeyError(name)
    return tensors[name].shape


def expert_config(tensors: Mapping[str, TensorPlace]) -> dict[str, Any]:
    """The configuration of an expert (diffusers' names) from its tensors' shapes. Raises KeyError naming the tensor
    that tells no shape."""
    theirs = DIFFUSERS_EXPERT in tensors
    text, time = (
        (f"condition_embedder.{n}_embedder.linear_1.weight" if theirs else f"{n}_embedding.0.weight")
        for n in ("text", "time")
    )
    width, inputs, *patch = _shape(tensors, "patch_embedding.weight", 5)
    (outputs,) = _shape(tensors, "proj_out.bias" if theirs else "head.head.bias", 1)
    layers = 1 + max((int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    return {
        "patch_size": patch,
        "num_attention_heads": width // HEAD_SIZE,
        "attention_head_dim": HEAD_SIZE,
        "in_channels": inputs,
        "out_channels": outputs // (patch[0] * patch[1] * patch[2]),
        "text_dim": _shape(tensors, text, 2)[1],
        "freq_dim": _shape(tensors, time, 2)[1],
        "ffn_dim": _shape(tensors, f"blocks.0.{'ffn.net.0.proj' if theirs else 'ffn.0'}.weight", 2)[0],
        "num_layers": layers,
        "cross_attn_norm": ("blocks.0.norm2.weight" if theirs else "blocks.0.norm3.weight") in tensors,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
    }


def vae_config(tensors: Mapping[str, TensorPlace]) -> dict[str, Any]:
    """Configuration of AutoencoderKLWan: the first convolution tells the width, all else is Wan 2.1's. Raises
    KeyError."""
    first, last = (
        (DIFFUSERS_VAE, "post_quant_conv.weight")
        if DIFFUSERS_VAE in tensors
        else ("encoder.conv1.weight", "conv2.weight")
    )
    return {"base_dim": _shape(tensors, first, 5)[0], "z_dim": _shape(tensors, last, 5)[0]}


def text_config(tensors: Mapping[str, TensorPlace]) -> dict[str, Any]:
    """Configuration of UMT5EncoderModel from its tensors' shapes, under transformers' names. Raises KeyError."""
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
