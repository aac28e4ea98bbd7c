"""Wan's own names of tensors, which ComfyUI and GGUF files keep, as the names that diffusers and transformers use.

diffusers' own converters move values from key to key, so given the names themselves as values they say which stored
tensor each of theirs is. Only the file's header is needed (`engine.weights.model_files`). A part that is under
diffusers' names already stays as it is.
"""

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

from presets.base.comfy_files import DIFFUSERS_EXPERT, DIFFUSERS_VAE, encoder_names, is_weight
from presets.base.safetensors_header import TensorPlace

Places = dict[str, TensorPlace]


def expert_names(places: Places) -> dict[str, str]:
    """diffusers' name -> stored name (without prefix) of every weight."""
    if DIFFUSERS_EXPERT in places:
        return {name: name for name in places if is_weight(name)}
    names: dict[str, str] = convert_wan_transformer_to_diffusers({name: name for name in places if is_weight(name)})
    return names


def vae_names(places: Places) -> dict[str, str]:
    if DIFFUSERS_VAE in places:
        return {name: name for name in places if is_weight(name)}
    names: dict[str, str] = convert_wan_vae_to_diffusers({name: name for name in places if is_weight(name)})
    return names


def text_names(places: Places) -> dict[str, str]:
    """transformers' names may be kept, or be Wan's own, or llama.cpp's."""
    return encoder_names(places)


NAMES = {"vae": vae_names, "text_encoder": text_names, "transformer": expert_names, "transformer_2": expert_names}
