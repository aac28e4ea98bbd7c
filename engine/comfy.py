"""ComfyUI's single files under the names that diffusers and transformers use.

diffusers' own converters move values from key to key, so given the names themselves as values they tell which stored tensor
stands behind each of theirs. Only the file's header is needed.
"""

from typing import Any

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

from presets.comfy import expert_config, is_weight
from presets.headers import TensorPlace

Places = dict[str, TensorPlace]


def expert_names(places: Places) -> dict[str, str]:
    """diffusers' name -> stored name (without prefix) of every weight."""
    names: dict[str, str] = convert_wan_transformer_to_diffusers({name: name for name in places if is_weight(name)})
    return names


def vae_names(places: Places) -> dict[str, str]:
    names: dict[str, str] = convert_wan_vae_to_diffusers({name: name for name in places if is_weight(name)})
    return names


def text_names(places: Places) -> dict[str, str]:
    """ComfyUI keeps transformers' names."""
    return {name: name for name in places if is_weight(name)}


def vae_config(places: Places) -> dict[str, Any]:
    """Configuration of AutoencoderKLWan: the first convolution tells the width, all else is Wan 2.1's. Raises KeyError."""
    return {"base_dim": places["encoder.conv1.weight"].shape[0], "z_dim": places["conv2.weight"].shape[0]}


def text_config(places: Places) -> dict[str, Any]:
    """Configuration of UMT5EncoderModel from its tensors' shapes. Raises KeyError."""
    first = "encoder.block.0.layer.0.SelfAttention"
    vocabulary, width = places["shared.weight"].shape
    buckets, heads = places[f"{first}.relative_attention_bias.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in places if name.startswith("encoder.block."))
    return {
        "vocab_size": vocabulary, "d_model": width, "d_kv": places[f"{first}.q.weight"].shape[0] // heads, "num_heads": heads, "num_layers": layers,
        "d_ff": places["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0], "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu", "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip


CONFIGS = {"vae": vae_config, "text_encoder": text_config, "transformer": expert_config, "transformer_2": expert_config}
NAMES = {"vae": vae_names, "text_encoder": text_names, "transformer": expert_names, "transformer_2": expert_names}
