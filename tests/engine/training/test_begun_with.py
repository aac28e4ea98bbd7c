"""Whole runs that begin with LoRAs: what they start from and what is merged into their base is said in the log, the
events and the metadata, and a resume needs the one no more and the other unchanged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.adapters import lora
from engine.run import run_job
from engine.runfolder import checkpoint
from engine.system.durable_files import sha256
from presets.job.schema import Job, MergePanel
from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers.jobs import of_kind, write_image_job


def edited(path: Path, *, merge: list[MergePanel] | None = None, **values: object) -> Path:
    job: Job = load_job(path)
    for field, value in values.items():
        job = with_value(job, field.replace("__", "."), value)
    if merge is not None:
        job.model.merge = merge
    save_job(job, path)
    return path


def trained(job: Path, *, resume: bool = False) -> int:
    return run_job(job, None, resume=resume, workers=0, device="cpu")


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    assert trained(write_image_job(folder, tiny, prompts=0, steps=2, lr=1e-2, target={"alpha": 4.0})) == 0
    return folder / "runs" / "t"


def test_a_run_goes_on_from_another_and_is_resumed_without_it(tiny, first, tmp_path, capsys):
    begun = shutil.copytree(first, tmp_path / "earlier")
    other = tmp_path / "other.safetensors"
    save_file({k: v + 0.01 for k, v in load_file(first / "t_high_noise.safetensors").items()}, other)
    job = edited(
        write_image_job(tmp_path, tiny, prompts=0, steps=2, target={"rank": 3}),
        target__start_high="earlier",
        target__start_low="earlier/t_low_noise.safetensors",
        training__lr=1e-12,
        merge=[MergePanel(path="other.safetensors", strength=0.5, expert="high_noise")],
    )
    assert trained(job) == 0
    run, newest = tmp_path / "runs/t", checkpoint.listed(begun)[-1] / "lora_high_noise.safetensors"
    starts = {
        "high_noise": {"file": f"t/{newest.parent.name}/{newest.name}", "sha256": sha256(newest), "rank": 2, "step": 2},
        "low_noise": {
            "file": "t_low_noise.safetensors",
            "sha256": sha256(first / "t_low_noise.safetensors"),
            "rank": 2,
            "step": 2,
        },
    }
    merges = {"high_noise": [{"file": "other.safetensors", "sha256": sha256(other), "strength": 0.5}]}
    (said,) = of_kind(run, "started")
    assert (said["starts"], said["merges"]) == (starts, merges)
    texts = [d["text"] for d in of_kind(run, "log")]
    assert any("other.safetensors is merged at 0.5 into high noise" in text for text in texts)
    assert any(text.startswith("the high noise LoRA starts from t/step_") for text in texts)
    assert any("is filled up to rank 3" in text for text in texts)
    # at next to no learning rate it is still the delta that it began with
    ours, theirs = (load_file(checkpoint.listed(r)[-1] / newest.name) for r in (run, begun))
    for name in (n for n in theirs if n.endswith("lora_A.weight")):
        up = name.replace("lora_A", "lora_B")
        torch.testing.assert_close(ours[up] @ ours[name], 2.0 * theirs[up] @ theirs[name], rtol=1e-4, atol=1e-6)
    metadata = lora.read_metadata(run / "t_high_noise.safetensors")
    assert json.loads(metadata["wanlora.start"]) == starts["high_noise"]
    assert json.loads(metadata["wanlora.merges"]) == merges["high_noise"]
    assert "wanlora.merges" not in lora.read_metadata(run / "t_low_noise.safetensors")

    shutil.rmtree(begun)
    assert trained(edited(job, training__steps=4, target__start_low=""), resume=True) == 0
    assert of_kind(run, "started")[-1]["starts"] == starts
    assert lora.read_metadata(run / "t_low_noise.safetensors")["wanlora.start"] == json.dumps(starts["low_noise"])
    assert any(d["text"].startswith("target.start_low changed, to no effect") for d in of_kind(run, "log"))

    capsys.readouterr()
    save_file(load_file(first / "t_low_noise.safetensors"), other)
    assert trained(edited(job, training__steps=6), resume=True) == 1
    assert "merged into the base are not those" in of_kind(run, "failed")[-1]["cause"]
    assert trained(edited(job, merge=[]), resume=True) == 1
    assert "model.merge" in capsys.readouterr().err


def test_a_start_that_is_too_large_is_refused_before_anything_is_loaded(tiny, first, tmp_path):
    job = edited(write_image_job(tmp_path, tiny, prompts=0, steps=2, target={"rank": 1}), target__start_high=str(first))
    assert trained(job) == 1
    failed = of_kind(tmp_path / "runs/t", "failed")[-1]
    assert "it has rank 2 at blocks.0." in failed["cause"] and "target.rank = 2" in failed["next"]


def test_a_merge_changes_what_is_trained(tiny, first, tmp_path):
    losses = []
    for number, merge in enumerate(([], [MergePanel(path=str(first / "t_high_noise.safetensors"), strength=3.0)])):
        job = edited(write_image_job(tmp_path / str(number), tiny, prompts=0, steps=2), merge=merge)
        assert trained(job) == 0
        losses.append([d["loss"] for d in of_kind(tmp_path / str(number) / "runs/t", "step")])
    assert losses[0] != losses[1]
