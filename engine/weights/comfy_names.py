"""ComfyUI's single files under the names that diffusers and transformers use.

diffusers' own converters move values from key to key, so given the names themselves as values they say which stored
tensor each of theirs is. Only the file's header is needed (`engine.weights.model_files`).
"""

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

from presets.base.comfy_files import DIFFUSERS_VAE, is_weight
from presets.base.safetensors_header import TensorPlace

Places = dict[str, TensorPlace]


def expert_names(places: Places) -> dict[str, str]:
    """diffusers' name -> stored name (without prefix) of every weight."""
    names: dict[str, str] = convert_wan_transformer_to_diffusers({name: name for name in places if is_weight(name)})
    return names


def vae_names(places: Places) -> dict[str, str]:
    """A single file may hold diffusers' names as well."""
    if DIFFUSERS_VAE in places:
        return {name: name for name in places if is_weight(name)}
    names: dict[str, str] = convert_wan_vae_to_diffusers({name: name for name in places if is_weight(name)})
    return names


def text_names(places: Places) -> dict[str, str]:
    """ComfyUI keeps transformers' names."""
    return {name: name for name in places if is_weight(name)}


NAMES = {"vae": vae_names, "text_encoder": text_names, "transformer": expert_names, "transformer_2": expert_names}
