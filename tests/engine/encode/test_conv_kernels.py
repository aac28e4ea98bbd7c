"""Which convolutions are ours, by what was measured."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from engine.encode.conv_kernels import Found, choose, chosen, sizes

FAST, SLOW, NONE = (
    Found(2e-3, 1e-3, ("tile",), {}),
    Found(1e-3, 2e-3, ("tile",), {}),
    Found(1e-3, 9.0, None, {"a": "x"}),
)


def test_ours_is_taken_where_it_is_faster() -> None:
    choice = chosen({(96, 96): FAST, (96, 192): SLOW, (8, 96): NONE}, again=False)
    assert choice.tiles == {(96, 96): ("tile",)}
    assert choice.ours == "96 to 96"
    assert choice.why == (
        "96 to 96: torch 2.00 ms, ours 1.00 ms; 96 to 192: torch 1.00 ms, ours 2.00 ms; 8 to 96: torch 1.00 ms,"
        " ours not (x)"
    )


def test_a_resume_has_what_was_ours_whatever_is_faster_now() -> None:
    assert chosen({(96, 96): FAST, (96, 192): SLOW}, again=True).ours == "96 to 192, 96 to 96"
    with pytest.raises(RuntimeError, match="8 to 96 was ours before the resume: x"):
        chosen({(8, 96): NONE}, again=True)


def test_on_a_cpu_none_is_ours_and_a_checkpoint_says_so() -> None:
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True])
    assert sizes(vae.encoder) == [(8, 8), (8, 16), (16, 16), (16, 32)]
    assert choose(vae.encoder.to(torch.bfloat16)).ours == choose(vae.encoder, "8 to 8").ours == ""
