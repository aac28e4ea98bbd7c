"""The toy base: what it is drawn from, how its VAE is trained, and that the model in the package does what its captions
say."""

import math

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

from engine.encode.text_embeddings import MAX_TOKENS
from engine.toy_base import DATA, score
from engine.toy_base import train as training
from engine.toy_base.clip_vae import decode, encode, flat_convolutions
from engine.toy_base.films import CAMERAS, CAPTIONS, COLOURS, FRAMES, MOTIONS, REACH, SPREAD, locate, render, scenes
from engine.toy_base.parts import BOUNDARY, SIGMAS, TEXT_WIDTH, TOKENS, embed, new_expert, with_short_captions
from engine.toy_base.score import report
from presets.base.composition import NamedBase
from presets.base.model_facts import read_model

pytestmark = pytest.mark.process  # takes seconds

CPU = torch.device("cpu")
STILL = list(CAMERAS).index("still camera")


def drawn(count: int, **fixed: torch.Tensor):
    return scenes(count, torch.Generator().manual_seed(3), **fixed)


def test_an_object_is_where_its_film_says():
    scene = drawn(60)
    film, places = render(scene)
    centre, share = locate(film, scene.colour_B)
    inside = (places.abs().amax(-1) + scene.radius_B[:, None]) < 0.9
    assert inside.float().mean() > 0.7
    assert (centre - places).norm(dim=-1)[inside].max() < 0.03
    assert share[inside].min() > 0.008


def test_objects_move_as_their_captions_say():
    motion = torch.arange(50) % len(MOTIONS)
    scene = drawn(50, motion_B=motion, camera_B=torch.full_like(motion, STILL))
    _, places = render(scene)
    way = places[:, -1] - places[:, 0]
    told = torch.tensor(list(MOTIONS.values()), dtype=torch.float32)[motion]
    assert ((way - told * REACH).norm(dim=-1) <= REACH * SPREAD + 1e-6).all()
    assert [CAPTIONS[i] for i in scene.captions_B[:5]] == [
        f"a {list(COLOURS)[c]} {s}"
        for c, s in zip(scene.colour_B[:5], [CAPTIONS[i].split(" ", 2)[2] for i in scene.captions_B[:5]], strict=True)
    ]
    assert all(list(MOTIONS)[m] in CAPTIONS[i] for m, i in zip(motion, scene.captions_B, strict=True))


def test_fewer_frames_are_the_beginning_of_more():
    scene = drawn(3)
    assert torch.equal(render(scene, 9)[0], render(scene)[0][:, :, :9])


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_whole_clips_through_the_vae_are_what_diffusers_makes_of_them(frames: int):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()
    video, latents = torch.randn(2, 3, frames, 32, 32), torch.randn(2, 16, (frames - 1) // 4 + 1, 4, 4)
    with torch.no_grad():
        moments, back = vae.encode(video).latent_dist.parameters, vae.decode(latents).sample
        with flat_convolutions():
            assert torch.allclose(encode(vae, video), moments, atol=1e-5)
            assert torch.allclose(decode(vae, latents).clamp(-1, 1), back, atol=1e-4)
        assert WanCausalConv3d.forward.__qualname__ == "WanCausalConv3d.forward"  # as it was


def test_short_captions_are_attended_to_as_padded_ones():
    torch.manual_seed(0)
    x, timestep, text = torch.randn(2, 36, 2, 4, 4), torch.tensor([900.0, 300.0]), embed(CAPTIONS[:2])
    padded = torch.cat([text, text.new_zeros(2, MAX_TOKENS - TOKENS, TEXT_WIDTH)], 1)
    net = new_expert().eval()
    with torch.no_grad():
        whole = net(x, timestep, padded, return_dict=False)[0]
        short = with_short_captions(net, CPU)(x, timestep, text, return_dict=False)[0]
    assert torch.allclose(short, whole, atol=1e-4) and text.abs().sum() > 0


def test_a_few_steps_of_training_leave_a_base_that_loads(tmp_path, monkeypatch):
    for name, value in {"IMAGE_STEPS": 1, "FILMS": 1, "BATCH": 2, "UNSEEN": 2}.items():
        monkeypatch.setattr(training, name, value)
    with flat_convolutions():
        training.train_vae(tmp_path, seed=1, steps=1, device=CPU)
        training.train_experts(tmp_path, seed=1, steps=2, device=CPU)
        before = training.load_experts(tmp_path)
        training.write_base(
            tmp_path / "base", AutoencoderKLWan.from_pretrained(tmp_path / "vae"), training.load_experts(tmp_path)
        )
    facts = read_model(NamedBase(path=str(tmp_path / "base")), tmp_path)
    assert not facts.problems and facts.boundary_ratio == BOUNDARY
    fresh = new_expert().state_dict()
    assert all(any(not torch.equal(p, fresh[n]) for n, p in net.state_dict().items()) for net in before.values())


def test_the_learning_rate_rises_and_falls():
    values = [training.rate(step, 100, 1.0, 10) for step in range(101)]
    assert (
        math.isclose(max(values), values[9], rel_tol=0.02)
        and values[0] < 0.11
        and math.isclose(values[-1], 0.02, rel_tol=0.01)
    )


@pytest.mark.parametrize("count", [3, pytest.param(len(MOTIONS), marks=pytest.mark.thorough)])
def test_the_package_s_model_does_what_its_captions_say(monkeypatch, count: int):
    """Few first frames and steps, since this is a CPU; data/README.md has the scores over many."""
    monkeypatch.setattr(score, "STEPS", 8)
    facts = read_model(NamedBase(path=str(DATA)), DATA)
    assert not facts.problems and facts.boundary_ratio == BOUNDARY
    vae = AutoencoderKLWan.from_pretrained(DATA / "vae", torch_dtype=torch.float32)
    experts = {name: WanTransformer3DModel.from_pretrained(DATA / name, torch_dtype=torch.float32) for name in SIGMAS}
    with flat_convolutions():
        found = report(vae, experts, CPU, count=count)
    assert found["vae"]["mean_db"] > 40 and found["vae"]["worst_db"] > 30
    for camera in ("still camera", "any camera"):
        for frames in (FRAMES, FRAMES // 2 + 1):
            row = found[f"{camera}, {frames} frames"]
            assert row["ends_near"] == row["keeps_size"] == row["of"] >= count - 1, row
            assert row["psnr_db"] > 30
    assert sum(file.stat().st_size for file in DATA.rglob("*.safetensors")) < 24e6
