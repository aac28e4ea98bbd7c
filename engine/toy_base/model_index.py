"""The index of a diffusers folder of Wan 2.2 I2V A14B, without torch."""

from importlib.metadata import version
from typing import Any


def model_index(boundary: float) -> dict[str, Any]:
    """model_index.json of Wan 2.2 I2V A14B, as the installed diffusers writes it, for experts that divide at this
    sigma."""
    return {
        "_class_name": "WanImageToVideoPipeline",
        "_diffusers_version": version("diffusers"),
        "boundary_ratio": boundary,
        "expand_timesteps": False,
        "image_encoder": [None, None],
        "image_processor": [None, None],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
