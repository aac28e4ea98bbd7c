"""Whole runs on the tiny base in which some layers train: their files, rates, checkpoints, and what a resume allows."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.run import run_job
from engine.training.optimizer import build_optimizer, parameter_groups, set_lr
from presets.job.lora_layers import TrainedLayer, lora_layers
from presets.job.schema import LayersPanel, TrainingPanel
from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers.facts import job as a_job
from tests.helpers.jobs import of_kind, write_image_job

TARGET = {
    "rank": 2,
    "alpha": 1.0,
    "exclude": ["cross_attn.k"],
    "layers": [LayersPanel(match="blocks.1", rank=3, lr_factor=0.1), LayersPanel(match="ffn", rank=1)],
}


def write(folder: Path, base: Path, **training) -> Path:
    job = write_image_job(
        folder, base, prompts=0, clips=2, target=TARGET, sample={"every": 0}, **{"steps": 4} | training
    )
    for clip in (folder / "clips").glob("*.mp4"):
        os.utime(clip, (0, 0))  # the day of the newest clip is in the files
    return job


def run(job: Path, *, resume: bool = False) -> int:
    return run_job(job, None, resume=resume, workers=0, device="cpu")


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    assert run(write(folder, tiny)) == 0
    return folder / "runs" / "t"


def files(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in run.glob("*.safetensors")}


def test_the_files_hold_the_layers_that_train_at_their_ranks(done):
    tensors = load_file(done / "t_high_noise.safetensors")
    ranks = {name.removesuffix(".lora_A.weight"): t.shape[0] for name, t in tensors.items() if "lora_A" in name}
    linears = [f"{a}.{n}" for a in ("self_attn", "cross_attn") for n in "qkvo" if (a, n) != ("cross_attn", "k")]
    expected = {f"blocks.{i}.{name}": (2, 3)[i] for i in range(2) for name in linears}
    expected |= {f"blocks.{i}.ffn.{n}": 1 for i in range(2) for n in (0, 2)}
    assert ranks == {f"diffusion_model.{name}": rank for name, rank in expected.items()}
    assert len(tensors) == 2 * len(ranks)


def test_layers_move_at_their_part_of_the_rate(done):
    """Adam moves a weight by about the rate a step; both experts have had two steps at 1e-3, and B began at zero. Files
    hold half of B: alpha / rank is 1 / 2."""
    for expert in ("high_noise", "low_noise"):
        moved: dict[str, float] = {}
        for name, tensor in load_file(done / f"t_{expert}.safetensors").items():
            if "lora_B" in name:
                block = name.split(".")[2]
                moved[block] = max(moved.get(block, 0.0), 2 * float(tensor.float().abs().max()))
        assert 1e-3 < moved["0"] < 3e-3 and 1e-4 < moved["1"] < 3e-4


@pytest.mark.thorough  # as those of all layers in test_faults
def test_stopped_and_resumed_it_is_the_same_run(tiny, tmp_path, done):
    job = write(tmp_path, tiny, steps=3)
    assert run(job) == 0
    save_job(with_value(load_job(job), "training.steps", 4), job)
    assert run(job, resume=True) == 0
    again = tmp_path / "runs" / "t"
    resumed, straight = ([(d["step"], d["loss"]) for d in of_kind(run, "step")] for run in (again, done))
    assert resumed == straight
    for name in ("t_high_noise.safetensors", "t_low_noise.safetensors"):
        a, b = load_file(again / name), load_file(done / name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_same_job_run_twice_gives_the_same_bytes(tiny, tmp_path, done):
    assert run(write(tmp_path, tiny)) == 0
    assert files(tmp_path / "runs" / "t") == files(done)


@pytest.mark.parametrize(
    "change", [("target.exclude", []), ("target.layers[0].rank", 4), ("target.layers[0].lr_factor", 1.0)]
)
def test_other_layers_are_refused_on_resume(done, tmp_path, capsys, change):
    job = shutil.copytree(done.parents[1], tmp_path / "copy") / "job.toml"
    save_job(with_value(load_job(job), *change), job)
    assert run(job, resume=True) == 1
    said = capsys.readouterr().err
    assert "its checkpoints do not fit it" in said and change[0] in said


def parameters_of(layers: list[TrainedLayer]) -> dict[str, torch.nn.Parameter]:
    names = [f"{layer.name}.lora_{side}.weight" for layer in layers for side in "AB"]
    return {name: torch.nn.Parameter(torch.ones(1)) for name in names}


def test_a_rate_that_is_set_reaches_each_group_by_its_factor():
    layers = lora_layers(a_job(target=TARGET), "high_noise", 2)
    parameters = parameters_of(layers)
    optimizer = build_optimizer(TrainingPanel(optimizer="adamw"), parameter_groups(parameters, layers))
    for lr in (1e-4, 3e-5):
        set_lr(optimizer, lr)
        assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(lr), pytest.approx(lr * 0.1)]
    slow = {id(p) for p in optimizer.param_groups[1]["params"]}
    assert slow == {id(p) for name, p in parameters.items() if name.startswith("blocks.1.")}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)


def test_layers_that_learn_alike_are_one_list_as_ever():
    layers = lora_layers(a_job(), "high_noise", 2)
    parameters = parameters_of(layers)
    assert parameter_groups(parameters, layers) == list(parameters.values())
    faster = a_job(target={"layers": [LayersPanel(match="blocks.0-1", lr_factor=2.0)]})
    groups = parameter_groups(parameters, lora_layers(faster, "high_noise", 2))
    assert [group["lr_factor"] for group in groups] == [2.0]
