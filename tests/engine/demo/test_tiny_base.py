"""The tiny base is a whole Wan 2.2 I2V A14B in layout and behaviour, and the same every time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.demo.tiny_base import build_tiny
from presets.base.composition import NamedBase
from presets.base.model_facts import read_model
from presets.errors import UserError
from tests.helpers.videos import numbered


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("model") / "base")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_it_is_a_complete_model_in_the_eyes_of_the_checks(tiny: Path) -> None:
    facts = read_model(NamedBase(path=str(tiny)), tiny.parent)
    assert (facts.missing, facts.problems) == ([], [])
    assert (facts.in_channels, facts.out_channels, facts.num_layers, facts.boundary_ratio) == (36, 16, 2, 0.9)
    assert facts.parameters < 200_000


def test_the_pipeline_of_diffusers_loads_and_runs_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline

    pipe = WanImageToVideoPipeline.from_pretrained(tiny, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
    assert pipe.scheduler.config.flow_shift == 5.0
    assert pipe.config.boundary_ratio == 0.9
    assert not torch.equal(pipe.transformer.blocks[0].attn1.to_q.weight, pipe.transformer_2.blocks[0].attn1.to_q.weight)
    image = Image.fromarray(numbered(5, 64, 64))
    frames = pipe(
        image=image,
        prompt="orbit around the red ball",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=3.5,
        generator=torch.manual_seed(0),
        output_type="np",
    ).frames
    assert frames.shape == (1, 9, 64, 64, 3)
    assert np.isfinite(frames).all()
    assert 0.02 < frames.std() < 0.45, "neither flat nor all black and white"


def test_latents_and_decoded_frames_have_a_sane_scale(tiny: Path) -> None:
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(tiny / "vae")
    clip = torch.stack([torch.from_numpy(numbered(i, 96, 64)) for i in range(9)]).permute(3, 0, 1, 2)[None] / 127.5 - 1
    mean, std = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        latents = vae.encode(clip).latent_dist.mode()
        decoded = vae.decode(latents, return_dict=False)[0]
    normal = (latents - mean) / std
    assert normal.shape == (1, 16, 3, 8, 12)
    assert 0.3 < normal.std() < 2
    assert normal.mean().abs() < 0.7
    assert decoded.shape == clip.shape
    assert 0.1 < decoded.std() < 0.9


def test_captions_become_words_and_come_back(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer", local_files_only=True)
    ids = tokenizer("orbit around the red ball").input_ids
    assert len(ids) == 6
    assert ids[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == 0
    assert tokenizer.decode(tokenizer("Frung, 2 [x]").input_ids, skip_special_tokens=True) == "Frung, 2 [x]"


def test_the_same_seed_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = contents(build_tiny(tmp_path / "again"))
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers are its own"
    assert again == contents(tiny)
    other = contents(build_tiny(tmp_path / "other", seed=1))
    assert all(
        other[f"{part}/diffusion_pytorch_model.safetensors"] != again[f"{part}/diffusion_pytorch_model.safetensors"]
        for part in ("transformer", "transformer_2", "vae")
    )


def test_a_whole_one_is_kept_and_a_damaged_one_made_anew(tmp_path: Path) -> None:
    path = build_tiny(tmp_path / "base")
    weights = path / "transformer" / "diffusion_pytorch_model.safetensors"
    good, made = weights.read_bytes(), weights.stat().st_mtime_ns
    build_tiny(path)
    assert weights.stat().st_mtime_ns == made
    weights.write_bytes(good[:1000])
    build_tiny(path)
    assert weights.read_bytes() == good
    build_tiny(path, layers=3)
    assert json.loads((path / "transformer" / "config.json").read_text())["num_layers"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_it_overwrites_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something else lies here already"):
        build_tiny(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
