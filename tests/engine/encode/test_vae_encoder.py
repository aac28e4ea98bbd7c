"""The fast encoder against diffusers' own, in fp32, for every way of cutting a clip into runs."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.nn import functional

from engine.encode.vae_encoder import ClipEncoder


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True]
    ).eval()


@pytest.mark.parametrize("frames", [4, 8])
@pytest.mark.parametrize("length", [1, 5, 13])
def test_any_run_length_gives_the_plain_encode(vae, length, frames):
    video = torch.rand(2, 3, length, 16, 32, generator=torch.Generator().manual_seed(length)) * 2 - 1
    with torch.no_grad():
        plain = vae.encode(video).latent_dist.parameters
    ours = ClipEncoder(vae, frames=frames, compiled=False).moments(video)
    assert ours.shape == plain.shape
    assert (ours - plain).norm() <= 1e-5 * plain.norm()


def test_an_encoder_of_four_channels_is_encoded_too():
    """As narrow as the first input and its zeros."""
    torch.manual_seed(0)
    narrow = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [True]}
    vae, video = AutoencoderKLWan(**narrow).eval(), torch.rand(1, 3, 5, 8, 8)
    with torch.no_grad():
        plain = vae.encode(video).latent_dist.parameters
    ours = ClipEncoder(vae, frames=4, compiled=False).moments(video)
    assert (ours - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("frames", [4, 12, 100])
@pytest.mark.parametrize("length, held", [(5, 2), (25, 1), (25, 2), (25, 6)])
def test_a_last_frame_that_goes_on_is_encoded_like_a_clip_that_has_it_as_often(vae, length, held, frames):
    video = torch.rand(1, 3, held, 8, 8, generator=torch.Generator().manual_seed(held)) * 2 - 1
    whole = torch.cat([video, video[:, :, -1:].expand(-1, -1, length - held, -1, -1)], dim=2)
    with torch.no_grad():
        plain = vae.encode(whole).latent_dist.parameters
    ours = ClipEncoder(vae, frames=frames, compiled=False).moments(video, length)
    assert ours.shape == plain.shape
    assert (ours - plain).norm() <= 1e-5 * plain.norm()


def test_behind_a_still_ending_few_frames_are_computed(vae, monkeypatch):
    """By the four convolutions of full size, in one run and in several."""
    seen: list[int] = []
    blocks, conv3d = vae.encoder.down_blocks[:2], functional.conv3d
    widest = {id(conv.weight) for block in blocks for conv in (block.conv1, block.conv2)}

    def counted(x: torch.Tensor, weight: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        y = conv3d(x, weight, *rest, **more)
        if id(weight) in widest:
            seen.append(y.shape[2])
        return y

    monkeypatch.setattr(functional, "conv3d", counted)
    ClipEncoder(vae, frames=100, compiled=False).moments(torch.rand(1, 3, 2, 8, 8), 41)
    assert seen == [6, 8, 10, 12]
    seen.clear()
    ClipEncoder(vae, frames=12, compiled=False).moments(torch.rand(1, 3, 2, 8, 8), 41)
    assert seen == [6, 8, 10, 12] + 3 * [1, 1, 1, 1]


def test_a_clip_is_encoded_in_a_fixed_order(vae, monkeypatch):
    """What the compiler times, and cuDNN picks, follows the setting as it is while they work."""
    seen, conv3d = set(), functional.conv3d

    def watched(*given: Any, **more: Any) -> torch.Tensor:
        seen.add(torch.are_deterministic_algorithms_enabled())
        return conv3d(*given, **more)

    monkeypatch.setattr(functional, "conv3d", watched)
    ClipEncoder(vae, frames=4, compiled=False).moments(torch.rand(1, 3, 5, 16, 32))
    assert seen == {True} and not torch.are_deterministic_algorithms_enabled()
