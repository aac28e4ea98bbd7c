"""The conditioning and the encode against diffusers' own Wan image-to-video pipeline, bit for bit."""

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline

from engine.encode.latents import PlainEncoder, condition, decode, encode, encode_pair, pixels


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


@pytest.mark.parametrize("frames", [5, 9])
def test_with_a_last_frame_too_it_is_what_the_pipeline_builds_with_last_image(pipe, frames):
    first, last = torch.rand(2, 1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    _, theirs = pipe.prepare_latents(
        first, 1, 16, 32, 48, frames, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(0), None, last
    )
    ours = condition(PlainEncoder(pipe.vae), first, frames, {0: last[0]})
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[0, :4, -1, 0, 0], torch.tensor([0.0, 0.0, 0.0, 1.0]))


def test_a_clip_gives_its_own_last_frame_in_the_rows_that_ask_for_it(pipe):
    video = torch.rand(3, 3, 5, 32, 48, generator=torch.Generator().manual_seed(4)) * 2 - 1
    encoder = PlainEncoder(pipe.vae)
    x0, mixed = encode_pair(encoder, video, [1])
    plain_x0, plain = encode_pair(encoder, video)
    assert torch.equal(x0, plain_x0)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    _, theirs = pipe.prepare_latents(
        video[1:2, :, 0], 1, 16, 32, 48, 5, torch.float32, torch.device("cpu"), None, None, video[1:2, :, -1]
    )
    torch.testing.assert_close(mixed[1:2], theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed[1], plain[1], atol=1e-2)


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
