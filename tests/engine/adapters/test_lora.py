"""The saved pair gives back exactly the trained model, through the loaders its users have."""

import re

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from safetensors.torch import load_file

from engine.adapters import lora
from engine.weights.base_model import BaseModel
from engine.weights.model_files import open_model_files
from presets.job.expert_schedule import EXPERTS, alpha_of
from presets.job.schema import DatasetPanel, Job, JobPanel, SavePanel, TargetPanel
from tests.helpers.training.plain import attach


def make_job(**target) -> Job:
    return Job(
        job=JobPanel(name="t", trigger="frung"),
        datasets=[DatasetPanel(path="x")],
        target=TargetPanel(**target),
        save=SavePanel(dtype="fp32"),
    )


def trained_pair(tiny, job: Job):
    """A pipeline whose two experts carry LoRAs that do something, and the tensors they carry, by expert."""
    pipe = WanImageToVideoPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    models = dict(zip(EXPERTS, (pipe.transformer, pipe.transformer_2), strict=True))
    return pipe, {
        e: attach(m, e, rank=job.target.rank, alpha=alpha_of(job, e), seed=i, strong=True)
        for i, (e, m) in enumerate(models.items())
    }


def run(pipe) -> torch.Tensor:
    image = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(5))
    from PIL import Image

    picture = Image.fromarray((image.permute(1, 2, 0) * 255).to(torch.uint8).numpy())
    return pipe(
        image=picture,
        prompt="orbit",
        height=32,
        width=48,
        num_frames=5,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).frames


@pytest.mark.parametrize("target", [{"rank": 4}, {"rank": 4, "alpha": 2.0}])
def test_files_load_into_a_diffusers_pipeline_bit_for_bit(tiny, tmp_path, target):
    job = make_job(**target)
    pipe, values = trained_pair(tiny, job)
    base = BaseModel(open_model_files(tiny), 0.9, 5.0, "abc")
    for expert in EXPERTS:
        lora.save_lora(tmp_path / f"{expert}.safetensors", values[expert], job=job, base=base, expert=expert, step=10)
    expected = run(pipe)

    fresh = WanImageToVideoPipeline.from_pretrained(tiny)
    fresh.set_progress_bar_config(disable=True)
    without = run(fresh)
    fresh.load_lora_weights(tmp_path / "high_noise.safetensors")
    fresh.load_lora_weights(tmp_path / "low_noise.safetensors", load_into_transformer_2=True)
    assert torch.equal(run(fresh), expected)
    assert not torch.equal(without, expected)


def test_every_key_has_the_form_comfyui_maps(tiny, tmp_path):
    """ComfyUI's rule for Wan: `diffusion_model.` + the module's own Wan name + lora_A/lora_B/alpha."""
    job = make_job(rank=4, alpha=8.0)
    pipe, values = trained_pair(tiny, job)
    lora.save_lora(
        tmp_path / "a.safetensors",
        values["high_noise"],
        job=job,
        base=BaseModel(open_model_files(tiny), 0.9, 5.0, "abc"),
        expert="high_noise",
        step=1,
    )
    keys = load_file(tmp_path / "a.safetensors").keys()
    blocks = pipe.transformer.config.num_layers
    modules = [f"{a}.{p}" for a in ("self_attn", "cross_attn") for p in "qkvo"] + ["ffn.0", "ffn.2"]
    expected = {
        f"diffusion_model.blocks.{b}.{m}.{k}"
        for b in range(blocks)
        for m in modules
        for k in ("lora_A.weight", "lora_B.weight", "alpha")
    }
    assert set(keys) == expected
    assert all(
        re.fullmatch(r"diffusion_model\.blocks\.\d+\.[a-z_]+\.(q|k|v|o|0|2)\.(lora_[AB]\.weight|alpha)", k)
        for k in keys
    )


def test_metadata_tells_expert_boundary_base_rank_alpha_step_and_job(tiny, tmp_path):
    job = make_job(rank=4)
    _, values = trained_pair(tiny, job)
    lora.save_lora(
        tmp_path / "a.safetensors",
        values["low_noise"],
        job=job,
        base=BaseModel(open_model_files(tiny), 0.9, 5.0, "abc"),
        expert="low_noise",
        step=250,
    )
    meta = lora.read_metadata(tmp_path / "a.safetensors")
    assert meta["wanlora.expert"] == "low_noise" and meta["wanlora.boundary"] == "0.9" and meta["wanlora.step"] == "250"
    assert meta["wanlora.rank"] == "4" and meta["wanlora.alpha"] == "4.0" and meta["wanlora.trigger"] == "frung"
    assert meta["wanlora.base_identity"] == "abc" and meta["wanlora.job_hash"] == lora.job_hash(job)


def test_a_new_lora_changes_nothing_and_its_start_depends_on_the_seed_and_the_expert_alone(tiny):
    pipe = WanImageToVideoPipeline.from_pretrained(tiny)
    x, t, text = (
        torch.randn(1, 36, 2, 4, 6),
        torch.tensor([900.0]),
        torch.randn(1, 512, pipe.transformer.config.text_dim),
    )
    before = pipe.transformer(x, t, text, return_dict=False)[0]
    a = attach(pipe.transformer, "high_noise", rank=4, alpha=4, seed=1)
    assert torch.equal(pipe.transformer(x, t, text, return_dict=False)[0], before)
    torch.randn(7)  # global randomness must not matter
    b, c, d = (
        lora.make(pipe.transformer_2.config, e, rank=4, alpha=4, seed=s, blocks=2, device=torch.device("cpu"))
        for e, s in (("high_noise", 1), ("low_noise", 1), ("high_noise", 2))
    )
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    name = "blocks.0.attn1.to_q.lora_A.weight"
    assert not torch.equal(a[name], c[name]) and not torch.equal(a[name], d[name])
    for key, p in a.items():  # B at zero; A uniform in +-1 / sqrt(in), whose variance is a third of its bound squared
        bound, n = p.shape[1] ** -0.5, p.numel()
        assert (
            not p.any()
            if "lora_B" in key
            else 0.9 * bound < float(p.detach().abs().max()) <= bound
            and abs(float(p.detach().mean())) < 4 * bound / (3 * n) ** 0.5
        )
    every = torch.cat([p.detach().double().flatten() * p.shape[1] ** 0.5 for key, p in a.items() if "lora_A" in key])
    assert float(every.square().mean()) == pytest.approx(1 / 3, abs=4 * (4 / 45 / len(every)) ** 0.5)
    assert len(a) == 2 * 2 * 10 and all(p.dtype == torch.float32 and p.requires_grad for p in a.values())
