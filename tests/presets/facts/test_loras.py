"""LoRAs that a job begins with: which expert a file is for, and what a new job takes over from it."""

import json
from pathlib import Path

import pytest

from presets.base.lora_metadata import expert_named, expert_said, read_scales
from presets.errors import UserError
from presets.facts.loras import lora_name, mergeable, shapes_of, start_fields, start_ranks
from presets.job.schema import MergePanel
from presets.rules.check import check_job
from tests.helpers.facts import facts, job, real_model, tiny_model
from tests.helpers.loras import lora_folder, pair, write_lora_file

HIGH, LOW = "target.start_high", "target.start_low"


@pytest.mark.parametrize(("name", "expert"), [
    ("orbit_high_noise", "high_noise"), ("orbit_000000500_low_noise", "low_noise"),
    ("Wan22-I2V-HighNoise-rank64", "high_noise"), ("style.LOW", "low_noise"), ("HIGH", "high_noise"),
    ("highway", None), ("slow", None), ("high_and_low", None), ("style", None),
])  # fmt: skip
def test_the_expert_of_a_name(name, expert):
    assert expert_named(name) == expert


def test_metadata_counts_more_than_a_name(tmp_path):
    path = write_lora_file(tmp_path / "low.safetensors", pair(), {"wanlora.expert": "high_noise"})
    assert expert_said(path) == "high_noise"
    assert expert_said(tmp_path / "gone_low.safetensors") == "low_noise"


def test_the_scales_of_both_experts_in_one_file(tmp_path):
    notes = {"transformer.lora_alpha": 8, "transformer.r": 4, "transformer_2.lora_alpha": 4, "transformer_2.r": 4}
    notes["transformer_2.use_rslora"] = True
    path = write_lora_file(tmp_path / "a.safetensors", pair(), {"lora_adapter_metadata": json.dumps(notes)})
    scales = read_scales(path)
    assert scales.of("transformer.blocks.0.attn1.to_q.lora_A.weight", 4) == 2
    assert scales.of("transformer_2.blocks.0.attn1.to_q.lora_A.weight", 4) == 2  # 4 / sqrt(4)


@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1\n", "<!DOCTYPE html>", "{}", ""])
def test_what_is_no_safetensors_file_says_nothing_of_itself(tmp_path, text):
    (tmp_path / "a_high_noise.safetensors").write_text(text)
    assert expert_said(tmp_path / "a_high_noise.safetensors") == "high_noise"
    findings = check_job(job(target={"start_low": "a_high_noise.safetensors"}), facts(base=tmp_path))
    assert "start-unusable" in {f.code for f in findings}


@pytest.mark.parametrize("alpha", ["nan", "inf", "-inf", "much"])
def test_an_alpha_that_is_no_number_is_refused(tmp_path, alpha):
    path = write_lora_file(tmp_path / "a.safetensors", pair(), {"ss_network_alpha": alpha})
    with pytest.raises(UserError, match="damaged metadata"):
        read_scales(path)


@pytest.mark.parametrize("text", [
    "[1]", "{", '{"lora_alpha": "much"}', '{"lora_alpha": 1, "alpha_pattern": {"(": 1}}', '{"lora_alpha": NaN}',
    '{"lora_alpha": 1, "alpha_pattern": {"to_q": Infinity}}', '{"lora_alpha": 1, "r": -4}',
])  # fmt: skip
def test_damaged_metadata_is_named(tmp_path, text):
    path = write_lora_file(tmp_path / "a.safetensors", pair(), {"lora_adapter_metadata": text})
    with pytest.raises(UserError, match="damaged metadata"):
        read_scales(path)


@pytest.mark.parametrize(("name", "fields"), [
    ("any.safetensors", [HIGH, LOW]), ("both.safetensors", [HIGH, LOW]), ("orbit_high_noise.safetensors", [HIGH]),
    ("orbit_low_noise.safetensors", [LOW]),
])  # fmt: skip
def test_a_file_fills_the_fields_that_it_is_for(name, fields):
    path = lora_folder() / name
    assert start_fields(path) == dict.fromkeys(fields, str(path))
    with pytest.raises(UserError, match="no such file"):
        start_fields(Path("/gone"))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"])
def test_a_folder_of_peft_or_diffusers_is_merged_as_it_is_started_from(tmp_path, name):
    (tmp_path / "high_epoch40").mkdir()
    file = write_lora_file(tmp_path / "high_epoch40" / name, pair())
    found = mergeable(MergePanel(path="high_epoch40"), tmp_path, ["high_noise"], shapes_of(None))
    assert found.path == file and found.experts == ["high_noise"] and lora_name(file) == f"high_epoch40/{name}"
    twice = job(model={"merge": [{"path": "high_epoch40"}]}, target={"start_high": "high_epoch40"})
    said = [f for f in check_job(twice, facts(base=tmp_path)) if f.code == "merge-twice"]
    assert [f.field for f in said] == [HIGH]
    file.unlink()
    with pytest.raises(UserError, match="is a directory") as caught:
        mergeable(MergePanel(path="high_epoch40"), tmp_path, ["high_noise"], shapes_of(None))
    assert "safetensors file in it" in caught.value.fix


def test_the_rank_is_taken_over():
    def ranks(**target: str) -> dict[str, int]:
        return {field: rank for field, (rank, _) in start_ranks(job(target=target), lora_folder()).items()}

    assert ranks(start_high="rank32.safetensors", start_low="rank32.safetensors") == {"target.rank": 32}
    assert ranks(start_high="any.safetensors") == {"target.rank": 4}
    both = {"target.rank": 32, "multistage.low.rank": 4}
    assert ranks(start_high="rank32.safetensors", start_low="any.safetensors") == both
    assert ranks(start_high="gone.safetensors") == ranks() == {}


def test_a_model_that_is_not_here_counts_as_the_real_one():
    real = shapes_of(real_model())
    assert shapes_of(None) == shapes_of(real_model(local=False, width=0)) == real and real.blocks == 40
    assert real.tensors["patch_embedding.weight"] == (5120, 36, 1, 2, 2)
    assert shapes_of(tiny_model()).tensors["ffn.net.2.weight"] == (32, 64)
