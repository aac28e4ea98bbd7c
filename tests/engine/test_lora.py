"""The saved pair gives back exactly the trained model, through the loaders its users have."""

import re

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from safetensors.torch import load_file

from engine import lora
from engine.base import EXPERTS, BaseFolder
from presets.job import DatasetPanel, Job, JobPanel, SavePanel, TargetPanel


def make_job(**target) -> Job:
    return Job(job=JobPanel(name="t", trigger="frung"), datasets=[DatasetPanel(path="x")], target=TargetPanel(**target), save=SavePanel(dtype="fp32"))


def trained_pair(tiny, job: Job):
    """A pipeline whose two experts carry LoRAs that do something, and the tensors they carry."""
    pipe = WanImageToVideoPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    for i, (expert, model) in enumerate(zip(EXPERTS, (pipe.transformer, pipe.transformer_2), strict=True)):
        lora.attach(model, expert, rank=job.target.rank, alpha=lora.job_alpha(job), seed=3)
        for name, p in lora.tensors(model).items():
            if "lora_B" in name:
                p.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(i))
    return pipe


def run(pipe) -> torch.Tensor:
    image = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(5))
    from PIL import Image

    picture = Image.fromarray((image.permute(1, 2, 0) * 255).to(torch.uint8).numpy())
    return pipe(image=picture, prompt="orbit", height=32, width=48, num_frames=5, num_inference_steps=4, generator=torch.Generator().manual_seed(1), output_type="latent").frames


@pytest.mark.parametrize("target", [{"rank": 4}, {"rank": 4, "alpha": 2.0}])
def test_files_load_into_a_diffusers_pipeline_bit_for_bit(tiny, tmp_path, target):
    job = make_job(**target)
    pipe = trained_pair(tiny, job)
    base = BaseFolder(tiny, 0.9, 5.0, "abc")
    for expert, model in zip(EXPERTS, (pipe.transformer, pipe.transformer_2), strict=True):
        lora.save_lora(tmp_path / f"{expert}.safetensors", lora.tensors(model), job=job, base=base, expert=expert, step=10)
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
    pipe = trained_pair(tiny, job)
    lora.save_lora(tmp_path / "a.safetensors", lora.tensors(pipe.transformer), job=job, base=BaseFolder(tiny, 0.9, 5.0, "abc"), expert="high_noise", step=1)
    keys = load_file(tmp_path / "a.safetensors").keys()
    blocks = pipe.transformer.config.num_layers
    modules = [f"{a}.{p}" for a in ("self_attn", "cross_attn") for p in "qkvo"] + ["ffn.0", "ffn.2"]
    expected = {f"diffusion_model.blocks.{b}.{m}.{k}" for b in range(blocks) for m in modules for k in ("lora_A.weight", "lora_B.weight", "alpha")}
    assert set(keys) == expected
    assert all(re.fullmatch(r"diffusion_model\.blocks\.\d+\.[a-z_]+\.(q|k|v|o|0|2)\.(lora_[AB]\.weight|alpha)", k) for k in keys)


def test_metadata_tells_expert_boundary_base_rank_alpha_step_and_job(tiny, tmp_path):
    job = make_job(rank=4)
    pipe = trained_pair(tiny, job)
    lora.save_lora(tmp_path / "a.safetensors", lora.tensors(pipe.transformer_2), job=job, base=BaseFolder(tiny, 0.9, 5.0, "abc"), expert="low_noise", step=250)
    meta = lora.read_metadata(tmp_path / "a.safetensors")
    assert meta["wanlora.expert"] == "low_noise" and meta["wanlora.boundary"] == "0.9" and meta["wanlora.step"] == "250"
    assert meta["wanlora.rank"] == "4" and meta["wanlora.alpha"] == "4.0" and meta["wanlora.trigger"] == "frung"
    assert meta["wanlora.base_identity"] == "abc" and meta["wanlora.job_hash"] == lora.job_hash(job)


def test_a_new_lora_changes_nothing_and_its_start_depends_on_the_seed_and_the_expert_alone(tiny):
    pipe, other = (WanImageToVideoPipeline.from_pretrained(tiny) for _ in range(2))
    x, t, text = torch.randn(1, 36, 2, 4, 6), torch.tensor([900.0]), torch.randn(1, 512, pipe.transformer.config.text_dim)
    before = pipe.transformer(x, t, text, return_dict=False)[0]
    lora.attach(pipe.transformer, "high_noise", rank=4, alpha=4, seed=1)
    assert torch.equal(pipe.transformer(x, t, text, return_dict=False)[0], before)
    torch.randn(7)  # global randomness must not matter
    lora.attach(other.transformer, "high_noise", rank=4, alpha=4, seed=1)
    lora.attach(other.transformer_2, "low_noise", rank=4, alpha=4, seed=1)
    a, b, c = (lora.tensors(m) for m in (pipe.transformer, other.transformer, other.transformer_2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["blocks.0.attn1.to_q.lora_A.weight"], c["blocks.0.attn1.to_q.lora_A.weight"])
    trainable = {n for n, p in pipe.transformer.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in n for n in trainable) and len(trainable) == len(a)


def test_strength_scales_the_branch_and_is_put_back(tiny):
    pipe = trained_pair(tiny, make_job(rank=4))
    layer = lora.layers(pipe.transformer)[0][1]
    x = torch.randn(1, 3, layer.in_features)
    full, base = layer(x), layer.base_layer(x)
    with lora.strength(pipe.transformer, 0.5):
        torch.testing.assert_close(layer(x) - base, 0.5 * (full - base), rtol=1e-4, atol=1e-5)
    with lora.strength(pipe.transformer, 0.0):
        assert torch.equal(layer(x), base)
    assert torch.equal(layer(x), full)
