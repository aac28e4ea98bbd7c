"""Stages in whole runs on the tiny base: turns, each expert's own rank, rate and share, a stage that is off, the
boundary."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.adapters.lora import read_metadata
from engine.run import run_job
from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers.jobs import events, of_kind, write_image_job

EXPERTS = ("high_noise", "low_noise")
SHARED = {
    "multistage.high.rank": 3,
    "multistage.high.lr": 1e-5,
    "multistage.high.share": 0.5,
    "target.alpha": 2.0,
    "model.boundary": 0.5,
}


def write(folder: Path, base: Path, changes: dict, *, prompts: int = 0, **training) -> Path:
    path = write_image_job(
        folder, base, prompts=prompts, clips=2, sample={"every": 0}, save={"every": 100}, **{"steps": 5, **training}
    )
    return change(path, changes)


def change(path: Path, changes: dict) -> Path:
    job = load_job(path)
    for field, value in changes.items():
        job = with_value(job, field, value)
    save_job(job, path)
    return path


def run(job: Path, *, resume: bool = False) -> int:
    return run_job(job, None, resume=resume, workers=0, device="cpu")


@pytest.fixture(scope="module")
def shared(tiny, tmp_path_factory) -> Path:
    """5 steps, turns of 2, one turn of three for high noise, which has a rank and a rate of its own."""
    folder = tmp_path_factory.mktemp("shared")
    assert run(write(folder, tiny, SHARED)) == 0
    return folder / "runs" / "t"


def test_turns_follow_the_shares_and_rates_the_expert(shared):
    steps = of_kind(shared, "step")
    assert "".join(d["expert"][0] for d in steps) == "hhlll"
    assert {(d["expert"], d["lr"]) for d in steps} == {("high_noise", 1e-5), ("low_noise", 1e-3)}
    assert all((d["timestep"] >= 500) == (d["expert"] == "high_noise") for d in steps), (
        "the job's own boundary, not the model's 900"
    )


def test_each_lora_has_its_own_rank_and_says_so(shared):
    for expert, rank in zip(EXPERTS, (3, 2), strict=True):
        file = shared / f"t_{expert}.safetensors"
        tensors, told = load_file(file), read_metadata(file)
        assert (
            {t.shape[0] for k, t in tensors.items() if "lora_A" in k}
            == {t.shape[1] for k, t in tensors.items() if "lora_B" in k}
            == {rank}
        )
        assert (told["wanlora.rank"], told["wanlora.alpha"]) == (str(rank), f"{rank}.0")
        assert told["wanlora.boundary"] == "0.5"
        assert not any(k.endswith(".alpha") for k in tensors), "it is folded into B"


def test_each_lora_moves_by_its_own_rate(shared):
    """Adam moves a weight by at most about the rate a step: 2 steps at 1e-5, and 3 at 1e-3."""
    moved = {
        e: max(
            float(t.float().abs().max()) for k, t in load_file(shared / f"t_{e}.safetensors").items() if "lora_B" in k
        )
        for e in EXPERTS
    }
    assert 1e-5 < moved["high_noise"] < 3e-5 and 1e-3 < moved["low_noise"] < 4e-3


@pytest.mark.thorough  # test_faults stops one within a turn, and whose turn it is depends on the step alone
def test_a_run_stopped_within_a_turn_goes_on_within_it(tiny, tmp_path, shared):
    job = write(tmp_path, tiny, {**SHARED, "training.steps": 3})  # after the first step of low noise's first turn
    assert run(job) == 0
    assert run(change(job, {"training.steps": 5}), resume=True) == 0
    resumed = tmp_path / "runs" / "t"
    assert [(d["step"], d["expert"], d["loss"]) for d in of_kind(resumed, "step")] == [
        (d["step"], d["expert"], d["loss"]) for d in of_kind(shared, "step")
    ]
    for expert in EXPERTS:
        a, b = (load_file(r / f"t_{expert}.safetensors") for r in (resumed, shared))
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def unreadable(tiny, tmp_path) -> Path:
    """A base whose high-noise expert cannot be loaded: one of its weights is no number."""
    base = shutil.copytree(tiny, tmp_path / "base")
    file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["blocks.0.ffn.net.2.weight"].view(-1)[3] = float("nan")
    save_file(weights, file)
    return base


def test_a_stage_that_is_off_is_neither_loaded_nor_trained(unreadable, tmp_path):
    job = write(tmp_path, unreadable, {"multistage.high_noise": False}, steps=2)
    assert run(job) == 0
    assert {d["expert"] for d in of_kind(tmp_path / "runs/t", "step")} == {"low_noise"}
    assert [f.name for f in (tmp_path / "runs/t").glob("t_*_noise.safetensors") if "0000" not in f.name] == [
        "t_low_noise.safetensors"
    ]
    assert run(write(tmp_path / "shown", unreadable, {"multistage.high_noise": False}, prompts=1, steps=2)) == 1, (
        "previews go through both, so it is read"
    )
    assert "ffn.net.2.weight" in of_kind(tmp_path / "shown/runs/t", "failed")[-1]["cause"]


@pytest.mark.parametrize("boundary", [0.0, 1.0, -3.0, 900.0])
def test_an_absurd_boundary_of_the_job_starts_nothing(tiny, tmp_path, capsys, boundary):
    assert run(write(tmp_path, tiny, {"model.boundary": boundary})) == 1
    assert "model.boundary" in capsys.readouterr().err
    assert not (tmp_path / "runs/t/events.jsonl").exists() or not of_kind(tmp_path / "runs/t", "step")


def test_an_absurd_boundary_of_the_model_starts_nothing_unless_the_job_has_one(tiny, tmp_path, capsys):
    base = shutil.copytree(tiny, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"boundary_ratio": 875}))
    job = write(tmp_path, base, {"multistage.switch_every": 1}, steps=2)
    assert run(job) == 1
    assert "875" not in (said := capsys.readouterr().err) and "must set model.boundary; Wan 2.2 I2V has 0.9" in said
    assert run(change(job, {"model.boundary": 0.875})) == 0
    assert read_metadata(tmp_path / "runs/t/t_low_noise.safetensors")["wanlora.boundary"] == "0.875"
    assert [e.kind for e in events(tmp_path / "runs/t")][-1] == "done"
