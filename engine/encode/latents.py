"""Clips to latents and back, and the image conditioning of Wan I2V.

B batch, C channels, T frames, F latent frames = (T-1)/4+1, H W pixels, h w latent sides = H/8, W/8.
Latents are normalised: (z - mean) / std per channel, with the VAE's own constants.

The encoder itself is engine.encode.vae_encoder's; the cache of latents, engine.encode.latent_cache's.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch
from diffusers import AutoencoderKLWan


class Encoder(Protocol):
    """A VAE's encoder: `engine.encode.vae_encoder.ClipEncoder` on CUDA, the VAE's own way elsewhere."""

    vae: AutoencoderKLWan
    ours: str  # which of its convolutions our kernel takes

    def moments(self, video_BCPHW: torch.Tensor, frames: int = 0) -> torch.Tensor:
        """Of the frames given; the last one goes on until there are `frames`."""
        ...


class PlainEncoder:
    """The VAE's own encode, four frames at a time."""

    ours = ""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae

    @torch.no_grad()
    def moments(self, video_BCPHW: torch.Tensor, frames: int = 0) -> torch.Tensor:
        """Mean and log-variance (B, 2 x 16, F, h, w), in the VAE's dtype."""
        more = max(0, frames - video_BCPHW.shape[2])
        video_BCTHW = torch.cat([video_BCPHW, video_BCPHW[:, :, -1:].expand(-1, -1, more, -1, -1)], dim=2)
        moments: torch.Tensor = self.vae.encode(video_BCTHW.to(self.vae.dtype)).latent_dist.parameters
        return moments


def pixels(frames_BTHWC: np.ndarray, *, device: torch.device) -> torch.Tensor:
    """uint8 frames (B, T, H, W, 3) -> float32 (B, 3, T, H, W) in [-1, 1]."""
    x = torch.from_numpy(frames_BTHWC).to(device).permute(0, 4, 1, 2, 3)
    return x.float().div_(127.5).sub_(1.0)


def _statistics(vae: AutoencoderKLWan, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, 1/std), each (1, C, 1, 1, 1)."""
    return _statistics_of(tuple(vae.config.latents_mean), tuple(vae.config.latents_std), like.device, like.dtype)


@cache  # they are copied to the device once: a copy would wait for what it has to do
def _statistics_of(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reciprocal first, then a product: that is how the Wan pipeline rounds."""
    m, s = (torch.tensor(values).view(1, -1, 1, 1, 1).to(device, dtype) for values in (mean, std))
    return m, 1.0 / s


def _latents(encoder: Encoder, moments: torch.Tensor) -> torch.Tensor:
    """The mode of the posterior (no noise of its own), normalised, in fp32."""
    z = moments.chunk(2, dim=1)[0].float()
    mean, inverse = _statistics(encoder.vae, z)
    return (z - mean) * inverse


def with_mask(latents_BCFhw: torch.Tensor, last_rows: Sequence[int] = ()) -> torch.Tensor:
    """The conditioning channels (B, 4 + 16, F, h, w) of the latents of the given frames. The mask's 4 channels are the
    4 pixel frames of a latent frame: all one in latent frame 0, zero after, but for the last pixel frame of the rows
    that give it."""
    mask = latents_BCFhw.new_zeros(latents_BCFhw.shape[0], 4, *latents_BCFhw.shape[2:])
    mask[:, :, 0] = 1
    for row in last_rows:
        mask[row, 3, -1] = 1
    return torch.cat([mask, latents_BCFhw], dim=1)


@torch.no_grad()
def encode(encoder: Encoder, video_BCTHW: torch.Tensor) -> torch.Tensor:
    """Video in [-1, 1] -> float32 latents (B, 16, F, h, w)."""
    return _latents(encoder, encoder.moments(video_BCTHW))


@torch.no_grad()
def encode_pair(
    encoder: Encoder, video_BCTHW: torch.Tensor, last_rows: Sequence[int] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a training step needs of clips: their latents, and the 20 conditioning channels of their first frames, in
    `last_rows` of their last frames, too (`condition`)."""
    last = {row: video_BCTHW[row, :, -1] for row in last_rows}
    return encode(encoder, video_BCTHW), condition(encoder, video_BCTHW[:, :, 0], video_BCTHW.shape[2], last)


@torch.no_grad()
def decode(vae: AutoencoderKLWan, latents_BCFhw: torch.Tensor) -> torch.Tensor:
    """Latents -> video (B, 3, T, H, W) in [-1, 1], float32."""
    z = latents_BCFhw.to(vae.dtype)
    mean, inverse = _statistics(vae, z)
    return vae.decode(z / inverse + mean, return_dict=False)[0].float().clamp_(-1, 1)


@torch.no_grad()
def condition(
    encoder: Encoder, first_BCHW: torch.Tensor, frames: int, last_CHW: Mapping[int, torch.Tensor] | None = None
) -> torch.Tensor:
    """The 20 conditioning channels (B, 4 + 16, F, h, w): mask, then latents of the first frame followed by zeros. The
    rows that `last_CHW` has end with that frame, which costs nothing: the zeros are encoded in any case.

    Bit for bit what diffusers' WanImageToVideoPipeline.prepare_latents builds, with its `last_image` for those rows.
    """
    last_CHW = last_CHW or {}
    assert frames > 1 or not last_CHW, "a single frame is its own last one"
    B, C, H, W = first_BCHW.shape
    held = frames if last_CHW else min(frames, 2)  # of nothing but zeros one stands for all
    video = torch.cat([first_BCHW.unsqueeze(2), first_BCHW.new_zeros(B, C, held - 1, H, W)], dim=2)
    for row, frame in last_CHW.items():
        video[row, :, -1] = frame
    return with_mask(_latents(encoder, encoder.moments(video, frames)), list(last_CHW))
