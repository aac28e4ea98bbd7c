"""A convolution of the encoder with what stands around it, by torch, against diffusers' own layers."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm
from torch.nn import functional as F

from engine.encode.convolution import Convolution, fill_normed, inside, make_padded, norm_silu, repeat_last

B, T, H, W = 2, 3, 4, 5


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(x_BTHWC: torch.Tensor, frames: int | None = None) -> torch.Tensor:
    B, T, H, W, C = x_BTHWC.shape
    padded = make_padded((B, frames or T, H, W, C), x_BTHWC)
    padded[:, :2] = 0
    inside(padded)[:, :T] = x_BTHWC
    repeat_last(padded, T)
    return padded


@pytest.fixture
def layer() -> WanCausalConv3d:
    torch.manual_seed(0)
    return WanCausalConv3d(12, 6, 3, padding=1).requires_grad_(False)


def test_norm_silu_is_the_formula_in_float64() -> None:
    x, gamma, bias = drawn(1, 2, 3, 3, 6), drawn(6, seed=1), drawn(6, seed=2)
    y = x.double() + bias.double()
    normed = y / y.square().sum(-1, keepdim=True).sqrt() * 6**0.5 * gamma.double()
    torch.testing.assert_close(norm_silu(x, bias, gamma).double(), normed * torch.sigmoid(normed), rtol=1e-5, atol=1e-6)


def test_what_is_padded_is_zero_around_each_frame() -> None:
    like = torch.full((1,), float("nan"))
    padded = make_padded((B, T, H, W, 3), like)
    padded[:, :2], inside(padded)[:] = 0, 1
    assert torch.equal(padded, F.pad(torch.ones(B, T, H, W, 3), (0, 0, 1, 1, 1, 1, 2, 0)))


def test_what_is_padded_goes_on_with_its_last_frame() -> None:
    x = drawn(B, T, H, W, 12)
    assert torch.equal(inside(filled(x, T + 2)), torch.cat([x, x[:, -1:], x[:, -1:]], dim=1))


def test_a_convolution_is_the_layer_s(layer: WanCausalConv3d) -> None:
    x, beside = drawn(B, T, H, W, 12), drawn(B, T, H, W, 6, seed=1)
    right = layer(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    ours = Convolution(layer, None, compiled=False)
    torch.testing.assert_close(ours(filled(x)), right)
    torch.testing.assert_close(ours(filled(x), beside), right + beside)


def test_norm_and_activation_follow_in_what_the_next_one_reads(layer: WanCausalConv3d) -> None:
    x, norm = drawn(B, T, H, W, 12), WanRMS_norm(6, images=False)
    norm.gamma.data = drawn(6, seed=1).view(6, 1, 1, 1)
    right = F.silu(norm(layer(x.permute(0, 4, 1, 2, 3)))).permute(0, 2, 3, 4, 1)
    into = filled(drawn(B, T + 1, H, W, 6))
    Convolution(layer, None, compiled=False).normed(filled(x), norm.gamma.detach().flatten(), into)
    torch.testing.assert_close(into, filled(right, T + 1))


def test_three_channels_are_convolved_as_eight() -> None:
    torch.manual_seed(0)
    layer, x = WanCausalConv3d(3, 4, 3, padding=1).requires_grad_(False), drawn(B, T, H, W, 3)
    ours = Convolution(layer, None, compiled=False)
    assert ours.channels == 8 and layer.weight.shape[1] == 3
    right = layer(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(ours(filled(F.pad(x, (0, 5)))), right)


def test_what_is_normed_fills_it_to_its_end() -> None:
    x, gamma = drawn(B, T, H, W, 12), drawn(12, seed=1)
    padded = filled(drawn(B, T + 2, H, W, 12))
    fill_normed(x, None, gamma, padded)
    assert torch.equal(padded, filled(norm_silu(x, None, gamma), T + 2))
