"""Which convolutions are ours."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from engine.encode import conv_kernels
from engine.encode.conv_kernels import WAN, faster, sizes, tiles_of


def test_wans_own_are_those_that_are_measured() -> None:
    with torch.device("meta"):
        assert sizes(AutoencoderKLWan().encoder) == sorted(WAN)


def test_those_that_are_ours_have_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is there on Linux")
    from engine.kernels.triton_conv import tile_of

    vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True])
    assert sizes(vae.encoder) == [(8, 8), (8, 16), (16, 16), (16, 32)]
    assert tiles_of(vae.encoder, "") == {}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert tiles_of(vae.encoder, "16 to 32, 8 to 8, 96 to 96") == {
        (8, 8): tile_of(8, (8, 6)),
        (16, 32): tile_of(32, (8, 6)),
    }
    assert not any(tile_of(outputs, (8, 6)).described for _, outputs in WAN)


def test_kernels_that_do_not_run_are_no_error_and_memory_that_is_short_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert faster(cpu) == "", "there is no CUDA here"

    def short(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(conv_kernels, "Convolution", short)
    with pytest.raises(torch.OutOfMemoryError):
        conv_kernels._is_faster(384, 32, cpu)
