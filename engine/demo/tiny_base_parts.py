"""The parts of the tiny base (`engine.demo.tiny_base`), built and saved.

The VAE's random weights are scaled, so that latents have about zero mean and unit variance after normalisation and
decoded frames stay about inside -1..1, as those of the real one.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from engine.toy_base.text_parts import WORDS, build_text_encoder, build_tokenizer


def write_parts(folder: Path, recipe: dict[str, Any], *, flow_shift: float) -> None:
    """Save both experts, VAE, text encoder, tokenizer and scheduler below `folder`. The caller's random state is left
    as it was."""
    tokenizer = build_tokenizer(WORDS)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for part, offset in (("transformer", 0), ("transformer_2", 1)):
            torch.manual_seed(recipe["seed"] * 10 + offset)
            _expert(recipe).save_pretrained(folder / part)
        torch.manual_seed(recipe["seed"] * 10 + 2)
        _vae(recipe["vae_dim"]).save_pretrained(folder / "vae")
        torch.manual_seed(recipe["seed"] * 10 + 3)
        text_encoder = build_text_encoder(len(tokenizer), recipe["text_dim"])
    shown = is_progress_bar_enabled()
    disable_progress_bar()  # one for a file of 100 kB
    text_encoder.save_pretrained(folder / "text_encoder")
    if shown:
        enable_progress_bar()
    tokenizer.save_pretrained(folder / "tokenizer")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=flow_shift
    ).save_pretrained(folder / "scheduler")


def _expert(recipe: dict[str, Any]) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=recipe["heads"],
        attention_head_dim=recipe["head_dim"],
        in_channels=36,
        out_channels=16,
        text_dim=recipe["text_dim"],
        freq_dim=32,
        ffn_dim=2 * recipe["heads"] * recipe["head_dim"],
        num_layers=recipe["layers"],
        image_dim=None,
        rope_max_seq_len=256,
    )


def _vae(width: int) -> AutoencoderKLWan:
    """A random VAE whose last encoder and decoder layers are rescaled on soft random pictures."""
    vae = AutoencoderKLWan(
        base_dim=width, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()
    coarse = torch.rand(3, 3, 3, 4, 4) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, size=(5, 48, 48), mode="trilinear")
    channels = (1, 16, 1, 1, 1)
    mean, std = (torch.tensor(v).view(channels) for v in (vae.config.latents_mean, vae.config.latents_std))

    raw = vae.encode(pictures).latent_dist.mode()
    was, scale = raw.mean(dim=(0, 2, 3, 4)).view(channels), std / raw.std(dim=(0, 2, 3, 4)).view(channels)
    last = vae.quant_conv  # the encoder's last layer; the first half of its channels are the latents
    last.weight[:16] *= scale.view(16, 1, 1, 1, 1)
    last.bias[:16] = ((last.bias[:16].view(channels) - was) * scale + mean).flatten()

    decoded = vae.decode((raw - was) * scale + mean, return_dict=False)[0]
    vae.decoder.conv_out.weight *= 0.5 / decoded.std()
    vae.decoder.conv_out.bias.zero_()
    return vae
