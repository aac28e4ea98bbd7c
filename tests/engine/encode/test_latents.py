"""The conditioning and the encode against diffusers' own Wan image-to-video pipeline, bit for bit."""

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline

from engine.encode.latents import PlainEncoder, condition, decode, encode, pixels


@pytest.fixture(scope="module")
def pipe(tiny):
    return WanImageToVideoPipeline.from_pretrained(tiny)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_conditioning_is_what_the_pipeline_builds(pipe, frames):
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    _, theirs = pipe.prepare_latents(
        image, 1, 16, 32, 48, frames, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(0)
    )
    ours = condition(PlainEncoder(pipe.vae), image, frames)
    assert ours.shape == (1, 20, (frames - 1) // 4 + 1, 4, 6)
    assert torch.equal(ours, theirs)


def test_a_batch_is_conditioned_like_each_of_its_clips(pipe):
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    together = condition(PlainEncoder(pipe.vae), images, 9)
    for i in range(2):
        torch.testing.assert_close(
            together[i : i + 1], condition(PlainEncoder(pipe.vae), images[i : i + 1], 9), rtol=1e-5, atol=1e-5
        )


def test_encode_is_the_normalised_mode_and_decode_its_inverse_scaling(pipe):
    video = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1
    latents = encode(PlainEncoder(pipe.vae), video)
    raw = pipe.vae.encode(video).latent_dist.mode()
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1, 1)
        for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    torch.testing.assert_close(latents, ((raw.double() - mean) / std).float(), rtol=1e-5, atol=1e-6)
    expected = pipe.vae.decode(raw, return_dict=False)[0].clamp(-1, 1)
    torch.testing.assert_close(decode(pipe.vae, latents), expected, rtol=1e-4, atol=1e-5)


def test_pixels_map_black_and_white_to_the_ends():
    frames = np.zeros((1, 1, 2, 2, 3), np.uint8)
    frames[..., 1] = 255
    x = pixels(frames, device=torch.device("cpu"))
    assert x.shape == (1, 3, 1, 2, 2)
    assert (x[:, 0] == -1).all() and (x[:, 1] == 1).all()
