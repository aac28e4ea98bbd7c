"""The saved pair gives back exactly the trained model, through the loaders its users have."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from safetensors.torch import load_file

from engine.adapters import lora
from engine.adapters.lora_metadata import job_hash, lora_metadata, trained_on
from engine.adapters.lora_reader import read_changes
from engine.weights.base_model import BaseModel
from engine.weights.model_files import open_model_files
from presets.base.lora_file import read_lora
from presets.job.expert_schedule import EXPERTS, alpha_of
from presets.job.lora_layers import lora_layers
from presets.job.schema import DatasetPanel, Job, JobPanel, LayersPanel, PromptPanel, SavePanel, TargetPanel
from presets.job.toml_file import job_to_dict
from tests.helpers.training.plain import ADAPTER, attach, peft_config, small_expert


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
        e: attach(
            m,
            e,
            rank=job.target.rank,
            alpha=alpha_of(job, e),
            seed=i,
            strong=True,
            layers=lora_layers(job, e, len(m.blocks)),
        )
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


@pytest.mark.parametrize(
    "target",
    [
        {"rank": 4},
        {"rank": 4, "alpha": 2.0},
        {
            "rank": 4,
            "alpha": 2.0,
            "exclude": ["cross_attn.k", "blocks.0.ffn"],
            "layers": [LayersPanel(match="q", rank=2), LayersPanel(match="blocks.0.self_attn", rank=8)],
        },
    ],
    ids=["rank", "alpha", "layers"],
)
def test_files_load_into_a_diffusers_pipeline_bit_for_bit(tiny, tmp_path, target):
    job = make_job(**target)
    pipe, values = trained_pair(tiny, job)
    base = BaseModel(open_model_files(tiny), 0.9, "abc")
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
    """ComfyUI's rule for Wan: `diffusion_model.` + the module's own Wan name + lora_A/lora_B."""
    job = make_job(rank=4, alpha=8.0)
    pipe, values = trained_pair(tiny, job)
    lora.save_lora(
        tmp_path / "a.safetensors",
        values["high_noise"],
        job=job,
        base=BaseModel(open_model_files(tiny), 0.9, "abc"),
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
        for k in ("lora_A.weight", "lora_B.weight")
    }
    assert set(keys) == expected
    assert all(
        re.fullmatch(r"diffusion_model\.blocks\.\d+\.[a-z_]+\.(q|k|v|o|0|2)\.lora_[AB]\.weight", k) for k in keys
    )


def test_metadata_tells_expert_boundary_base_rank_alpha_step_and_job(tiny, tmp_path):
    job = make_job(rank=4)
    _, values = trained_pair(tiny, job)
    lora.save_lora(
        tmp_path / "a.safetensors",
        values["low_noise"],
        job=job,
        base=BaseModel(open_model_files(tiny), 0.9, "abc"),
        expert="low_noise",
        step=250,
    )
    meta = lora.read_metadata(tmp_path / "a.safetensors")
    assert meta["wanlora.expert"] == "low_noise" and meta["wanlora.boundary"] == "0.9" and meta["wanlora.step"] == "250"
    assert meta["wanlora.rank"] == "4" and meta["wanlora.alpha"] == "4.0" and meta["wanlora.trigger"] == "frung"
    assert meta["wanlora.base_identity"] == "abc" and meta["wanlora.job_hash"] == job_hash(job)
    assert (meta["ss_network_dim"], meta["ss_network_alpha"], meta["ss_output_name"]) == ("4", "4.0", "t")
    spec = {key.removeprefix("modelspec."): value for key, value in meta.items() if key.startswith("modelspec.")}
    assert {"sai_model_spec", "architecture", "implementation", "title"} <= spec.keys(), "what the format asks for"
    assert (spec["trigger_phrase"], spec["resolution"], spec["timestep_range"]) == ("frung", "512x512", "0,900")
    data = (tmp_path / "a.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert header % 8 == 0 and spec["hash_sha256"] == f"0x{hashlib.sha256(data[header:]).hexdigest()}"
    high = lora_metadata(job, BaseModel(open_model_files(tiny), 0.9, "abc"), "high_noise", step=1, rank=4, clips=None)
    assert high["modelspec.timestep_range"] == "900,1000", "whole numbers"


@pytest.mark.parametrize("some", [False, True])
def test_it_is_laid_out_as_peft_does(some):
    model, layers = small_expert(3), None
    if some:
        job = make_job(rank=4, layers=[LayersPanel(match="ffn", rank=6)])
        layers = [one for one in lora_layers(job, "high_noise", 3) if one.name != "blocks.1.attn2.to_k"]
    ours = lora.make(model.config, "high_noise", rank=4, seed=0, blocks=3, device=torch.device("cpu"), layers=layers)
    model.add_adapter(peft_config(4, 4.0, layers), adapter_name=ADAPTER)
    theirs = {name.replace(f".{ADAPTER}", ""): p.shape for name, p in model.named_parameters() if "lora_" in name}
    assert list({name: t.shape for name, t in ours.items()}.items()) == list(theirs.items())


def values_of(config, job: Job) -> dict[str, torch.Tensor]:
    layers = lora_layers(job, "high_noise", config["num_layers"])
    made = lora.make(
        config,
        "high_noise",
        rank=job.target.rank,
        seed=0,
        blocks=config["num_layers"],
        device=torch.device("cpu"),
        layers=layers,
    )
    g = torch.Generator().manual_seed(1)
    return {name: torch.randn(p.shape, generator=g) for name, p in made.items()}


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_alpha_is_folded_into_b_before_it_is_rounded(tiny, tmp_path, dtype):
    job = make_job(rank=4, alpha=3.0, layers=[LayersPanel(match="ffn", rank=6)])
    job.save.dtype = dtype
    base = BaseModel(open_model_files(tiny), 0.9, "abc")
    values = values_of(base.source.expert("high_noise").config, job)
    path = tmp_path / "a.safetensors"
    lora.save_lora(path, values, job=job, base=base, expert="high_noise", step=1)
    assert lora.is_whole(path)
    read = read_changes(path, read_lora(path).of("high_noise"))
    assert len(read) == len(values) // 2
    for (block, linear), change in read.items():
        name = f"blocks.{block}.{linear}.lora_"
        assert torch.equal(change["A"], values[f"{name}A.weight"].to(lora.DTYPES[dtype]).float())
        assert torch.equal(change["B"], (values[f"{name}B.weight"] * 0.75).to(lora.DTYPES[dtype]).float())
        assert change["A"].shape[0] == (6 if "ffn" in linear else 4) and "alpha" not in change


SAVE = """
import sys
from pathlib import Path
import torch
from engine.adapters.tensor_file import save_tensors
g = torch.Generator().manual_seed(0)
tensors = {name: torch.randn(3, 5, generator=g).to(torch.bfloat16) for name in ("b", "a", "c")}
save_tensors(Path(sys.argv[1]), tensors, {f"key {i}": "é" * i for i in range(9)})
"""


def test_a_file_is_the_same_bytes_in_every_process(tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for i, file in enumerate(files):
        subprocess.run([sys.executable, "-c", SAVE, str(file)], check=True, env=os.environ | {"PYTHONHASHSEED": str(i)})
    assert len({file.read_bytes() for file in files}) == 1
    tensors, told = load_file(files[0]), lora.read_metadata(files[0])
    g = torch.Generator().manual_seed(0)
    assert all(
        torch.equal(tensors[name], torch.randn(3, 5, generator=g).to(torch.bfloat16)) for name in ("b", "a", "c")
    )
    assert told["key 8"] == "é" * 8 and len(told) == 10


def private_job(tmp_path) -> Job:
    job = make_job(rank=4)
    job.model.path, job.model.vae = str(tmp_path / "secret" / "base"), "some/vae"
    job.datasets[0].path, job.datasets[0].default_caption = "secret/orbit", "secret caption"
    job.datasets[0].exclude = ["secret_castle.mp4"]
    job.sample.negative, job.sample.accelerator = "secret negative", "../secret/fast.safetensors"
    job.sample.prompts = [PromptPanel(prompt="secret prompt", ctrl_img="secret.png")]
    return job


@pytest.mark.parametrize("metadata", ["plain", "full"])
def test_a_plain_file_says_nothing_of_folders_prompts_and_captions(tiny, tmp_path, metadata):
    job = private_job(tmp_path)
    job.save.metadata = metadata
    clip = tmp_path / "clip.mp4"
    clip.touch()
    os.utime(clip, (0, 86400 * 366))
    clips = trained_on([("orbit", str(clip), "secret caption, frung"), ("orbit", str(clip), "secret caption, frung")])
    base = BaseModel(open_model_files(tiny), 0.9, "abc")
    told = lora_metadata(job, base, "high_noise", step=3, rank=4, clips=clips)
    said = json.dumps(told)
    assert told["modelspec.date"] == "1971-01-02"
    if metadata == "full":
        assert json.loads(told["ss_tag_frequency"]) == {"orbit": {"secret caption": 1, "frung": 1}}
        assert json.loads(told["wanlora.job"]) == job_to_dict(job)
        assert told["wanlora.base"] == job.model.path and "secret prompt" in said
    else:
        assert "secret" not in said and str(tmp_path) not in said and "ss_tag_frequency" not in told
        tables = json.loads(told["wanlora.job"])
        assert (tables["model"]["path"], tables["model"]["vae"]) == ("base", "some/vae")
        assert tables["datasets"][0]["path"] == "orbit" and tables["sample"]["accelerator"] == "fast.safetensors"
        assert tables["target"]["rank"] == 4 and tables["job"]["trigger"] == "frung"


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
        lora.make(pipe.transformer_2.config, e, rank=4, seed=s, blocks=2, device=torch.device("cpu"))
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
