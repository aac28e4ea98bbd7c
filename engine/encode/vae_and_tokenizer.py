"""Tokenizer and VAE of a base model, from folders of diffusers or from ComfyUI's files.

S text tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from torch import nn
from transformers import AutoTokenizer

from engine.encode.tensor_cache import key_of
from engine.weights.model_files import ModelFiles
from presets.errors import UserError

Tokenize = Callable[[str], tuple[torch.Tensor, torch.Tensor]]  # text -> token ids (1, S), attention mask (1, S)


def load_vae(source: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKLWan:
    """Frozen, in eval mode. Raises UserError."""
    part = source.part("vae")
    with torch.device("meta"):
        model: Any = AutoencoderKLWan.from_config(part.config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    part.require(shapes)
    model.load_state_dict({name: part.stored[name].read(dtype) for name in shapes}, assign=True)
    # they copy to fp32 to repeat pixels, which is exact in any type and takes half the memory
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, WanUpsample):
                setattr(module, name, nn.Upsample(scale_factor=child.scale_factor, mode=child.mode))
    return model.requires_grad_(False).eval().to(device)


def vae_identity(source: ModelFiles) -> str:
    """Of all that turns pixels into latents: the weights, and the configuration with its mean and deviation of
    latents."""
    part = source.part("vae")
    return key_of("vae", part.identity(), sorted(part.config.items()))


def load_tokenizer(source: ModelFiles, *, length: int) -> Tokenize:
    """A function from a text to `length` tokens: cut after the closing token's place, padded behind it. Raises
    UserError."""
    spiece = source.spiece_model()
    if spiece is None:
        folder = source.tokenizer_files()[0].parent
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except Exception as e:  # of whatever kind: its files are somebody else's
            raise UserError(
                f"the tokenizer cannot be read ({str(e).splitlines()[0] if str(e) else type(e).__name__})",
                where=str(folder),
                fix="Download the tokenizer again",
            ) from e

        def by_transformers(text: str) -> tuple[torch.Tensor, torch.Tensor]:
            tokens = tokenizer(
                [text],
                padding="max_length",
                max_length=length,
                truncation=True,
                return_attention_mask=True,
                return_tensors="pt",
            )
            return tokens.input_ids, tokens.attention_mask

        return by_transformers

    from sentencepiece import SentencePieceProcessor

    try:
        pieces = SentencePieceProcessor(model_proto=spiece)
    except RuntimeError as e:
        raise UserError(
            f"the tokenizer in it is damaged ({e})",
            where=str(source.tokenizer_files()[0]),
            fix="Download this file again",
        ) from None

    def by_sentencepiece(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = [*pieces.encode(text)[: length - 1], pieces.eos_id()]
        ids = torch.full((1, length), pieces.pad_id())
        ids[0, : len(tokens)] = torch.tensor(tokens)
        return ids, (torch.arange(length) < len(tokens)).long().unsqueeze(0)

    return by_sentencepiece
