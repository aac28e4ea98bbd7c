"""The fast encoder against diffusers' own, in fp32, for every way of cutting a clip into runs."""

import weakref
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.encode import vae_encoder
from engine.encode.convolution import Convolution
from engine.encode.latents import encode_pair
from engine.encode.vae_encoder import Before, ClipEncoder, History
from presets.clips.geometry import Bucket
from presets.planner.cards import card_hardware, find_card
from presets.planner.memory_costs import MemoryCosts
from presets.planner.plan import Plan
from presets.planner.sizes import GIB, ExpertShape
from presets.planner.workload import Load, Workload


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
    """By the four convolutions of full size, in one run and in two: the second one takes all that is alike."""
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
    assert seen == [6, 8, 10, 12, 1, 1, 1, 1]


def test_a_clip_is_encoded_in_a_fixed_order(vae, monkeypatch):
    """What the compiler times, and cuDNN picks, follows the setting as it is while they work."""
    seen, conv3d = set(), functional.conv3d

    def watched(*given: Any, **more: Any) -> torch.Tensor:
        seen.add(torch.are_deterministic_algorithms_enabled())
        return conv3d(*given, **more)

    monkeypatch.setattr(functional, "conv3d", watched)
    ClipEncoder(vae, frames=4, compiled=False).moments(torch.rand(1, 3, 5, 16, 32))
    assert seen == {True} and not torch.are_deterministic_algorithms_enabled()


def test_the_last_run_keeps_nothing_for_a_next_one(vae, monkeypatch):
    """Of three runs, each layer that looks back keeps something of two."""
    made: list[History] = []
    monkeypatch.setattr(vae_encoder, "History", lambda: made.append(History()) or made[-1])
    copies: list[Before] = []
    monkeypatch.setattr(vae_encoder, "Before", lambda *kept: copies.append(Before(*kept)) or copies[-1])
    ClipEncoder(vae, frames=4, compiled=False).moments(torch.rand(1, 3, 13, 8, 8))
    (history,) = made
    assert history.last and len(copies) == 2 * len(history._of) > 0


class Living(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, number: int, size: int) -> None:
        self._seen.remove(number)
        self.now -= size


def test_an_encode_holds_what_the_planner_reckons_with(monkeypatch):
    """At the real widths and sizes, without a number: as where our kernels write into what the next layer reads. The
    planner's figures are a card's, and the allocator's parts are in them."""

    def conv(self: Convolution, padded: torch.Tensor, beside: Any = None, *, edge: bool = False) -> torch.Tensor:
        B, T, H, W, _ = padded.shape
        return padded.new_empty(B, T - 2, H - 2 + edge, W - 2 + edge, self.weight.shape[0])

    monkeypatch.setattr(Convolution, "__call__", conv)
    monkeypatch.setattr(Convolution, "normed", lambda *_: None)
    monkeypatch.setattr(vae_encoder, "fill_normed", lambda *_: None)
    with torch.device("meta"):
        real = AutoencoderKLWan().bfloat16().requires_grad_(False).eval()
    for clip in ((41, 512, 512), (81, 480, 832)):
        work = Workload(loads=(Load(Bucket(*clip), 1, 1.0),))
        costs = MemoryCosts(work, card_hardware(find_card("H200"), ram=64 * GIB), ExpertShape())
        for frames in (4, 8, 16):
            plan = Plan(precision="float8", vae_frames=frames)
            planned = costs.vram(plan)[0]["vae"] - sum(costs.held(plan).values())
            encoder = ClipEncoder(real, frames=frames, compiled=False)
            with Living() as living:
                encode_pair(encoder, torch.empty(1, 3, *clip, device="meta"))
            share = living.most / planned
            assert 0.85 < share < 1, f"{clip}, {frames} at a time: {living.most / GIB:.2f} of {planned / GIB:.2f} GiB"
