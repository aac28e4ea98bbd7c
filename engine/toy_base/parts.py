"""The toy base's parts: their sizes, its text encoder (random, like a hash of the words), and the folder that they
become. They are trained in `engine.toy_base.train`."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from torch.nn import functional as F
from transformers import T5TokenizerFast, UMT5EncoderModel

from engine.encode.text_embeddings import MAX_TOKENS
from engine.toy_base.films import CAMERAS, COLOURS, MOTIONS, SHAPES
from engine.toy_base.model_index import model_index
from engine.toy_base.text_parts import WORDS, build_text_encoder, build_tokenizer

TEXT_WIDTH = 64
TOKENS = 24  # of a caption, its padding cut: the longest of `films` has fewer
# Where the experts divide. What moves where is settled at sigma 0.9 on Wan's large latents, and at 0.4 on these small
# ones (`benchmarks/toy_experts.py`), so that here as there the high-noise expert decides it.
BOUNDARY = 0.35
SIGMAS = {"transformer": (BOUNDARY, 1.0), "transformer_2": (0.0, BOUNDARY)}  # each expert's noise
SHIFT = 5.0  # of timesteps, in training and sampling: Wan's own
# words that no film of the base has, for what a LoRA may teach
LEARNABLE = ("orbits", "circles", "spins", "jumps", "grows", "shrinks", "black")


def vocabulary() -> list[str]:
    """Whole words of the tokenizer."""
    spoken = {word for phrase in (*COLOURS, *SHAPES, *MOTIONS, *CAMERAS) for word in phrase.split()}
    return sorted(spoken | set(WORDS) | set(LEARNABLE))


def new_vae() -> AutoencoderKLWan:
    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=24, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def new_expert() -> WanTransformer3DModel:
    torch.manual_seed(5)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=36,
        out_channels=16,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=768,
        num_layers=6,
        image_dim=None,
        rope_max_seq_len=256,
    )


def new_text() -> tuple[T5TokenizerFast, UMT5EncoderModel]:
    """Tokenizer and encoder, the weights as bf16 holds them."""
    tokenizer = build_tokenizer(vocabulary())
    torch.manual_seed(3)
    return tokenizer, build_text_encoder(len(tokenizer), TEXT_WIDTH).to(torch.bfloat16).float().eval()


@torch.no_grad()
def embed(texts: list[str]) -> torch.Tensor:
    """(texts, 24, 64): what Wan's pipeline makes of them, but for the padding beyond 24 tokens. The last row is always
    padding."""
    tokenizer, encoder = new_text()
    tokens = tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt")
    assert tokens.input_ids.shape[1] == TOKENS and not tokens.attention_mask[:, -1].any(), (
        "a caption is longer than films have"
    )
    parts = zip(tokens.input_ids.split(64), tokens.attention_mask.split(64), strict=True)
    return torch.cat([encoder(ids, mask).last_hidden_state * mask[..., None] for ids, mask in parts])


class PaddedAttention:
    """Cross-attention over 24 tokens that equals the one over 512. Wan masks no padding: 489 equal keys in the softmax
    are one key whose score is higher by the logarithm of their number."""

    def __init__(self, device: torch.device) -> None:
        self._bias = torch.zeros(1, 1, 1, TOKENS, device=device)
        self._bias[..., -1] = math.log(MAX_TOKENS - TOKENS + 1)

    def __call__(
        self, attn: Any, x: torch.Tensor, text: torch.Tensor, attention_mask: None = None, rotary_emb: None = None
    ) -> torch.Tensor:
        q, k, v = (
            t.unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for t in (attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(text)), attn.to_v(text))
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias.to(q.dtype).expand(1, 1, q.shape[2], -1))
        return attn.to_out[0](out.transpose(1, 2).flatten(2, 3))


def with_short_captions(expert: WanTransformer3DModel, device: torch.device) -> WanTransformer3DModel:
    """The expert on `device`, taking captions as `embed` gives them."""
    for block in expert.blocks:
        block.attn2.set_processor(PaddedAttention(device))
    return expert.to(device)


def normalize(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the experts know them: about zero mean and unit variance."""
    mean, std = (
        torch.tensor(v, device=latents.device).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents - mean) / std


def first_frame(video: torch.Tensor) -> torch.Tensor:
    """The video with zeros behind its first frame."""
    return torch.cat([video[:, :, :1], torch.zeros_like(video[:, :, 1:])], 2)


def write_base(folder: Path, vae: AutoencoderKLWan, experts: dict[str, WanTransformer3DModel]) -> None:
    """Save everything as a diffusers folder, weights in bf16."""
    tokenizer, encoder = new_text()
    for name, model in {"vae": vae, "text_encoder": encoder, **experts}.items():
        model.to(torch.bfloat16).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=SHIFT
    ).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(model_index(BOUNDARY), indent=2) + "\n")
