"""What an adapter says of itself: names of other models, its base, and whose weights it assumes."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from presets.base.composition import NamedBase
from presets.base.model_facts import read_model
from presets.base.part_facts import PartFacts
from presets.errors import UserError
from presets.facts.recovery_adapter import FINGERPRINT, adapter_of, other_model, read_adapter
from presets.files import identity
from presets.job.schema import Job
from presets.rules.check import check_job
from tests.helpers.facts import facts, job, real_model


def written(path: Path, **metadata: str) -> Path:
    save_file({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": np.zeros((2, 8), np.float16)}, path, metadata)
    return path


def with_ara(text: str) -> Job:
    return job(quantization={"transformer": "qint4+ara", "ara": text})


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("wan22_14b_i2v_torchao_uint4", ""),
        ("wan22_14b_t2i_torchao_uint4", "text-to-image"),
        ("Wan2.2_T2V_A14B_uint4", "text-to-video"),
        ("wan22_5b_uint4", "a smaller model"),
        ("wan2.2-ti2v-5b", "a smaller model"),
        ("wan21_14b_i2v", "Wan 2.1"),
        ("wan_2.1", "Wan 2.1"),
        ("Wan2.1-VACE-14B", "Wan 2.1"),
        ("wan_2.2_14b", ""),
        ("wan_2.2_i2v_a14b/lora", ""),
        ("wan_14b_uint4", ""),
        ("wan_1.3b", "a smaller model"),
        ("qwen_image_torchao_uint3", "qwen"),
        ("flux2_klein_9b", "flux"),
        ("my_uint4", ""),
        ("influx_15b_uint4", ""),
    ],
)
def test_names_of_other_models(text, other):
    assert other_model(text) == other


@pytest.mark.parametrize(
    ("name", "metadata", "words"),
    [
        ("wan22_14b_t2i_torchao_uint4", {}, "text-to-image.*by its name"),
        ("uint4", {"ss_base_model_version": "wan_2.1"}, r"Wan 2.1.*by its metadata \(ss_base_model_version"),
        ("wan22_14b_i2v_torchao_uint3", {}, "uint3, which is not offered"),
    ],
)
def test_an_adapter_of_another_model_is_refused_by_check(tmp_path, name, metadata, words):
    made = with_ara(str(written(tmp_path / f"{name}.safetensors", **metadata)))
    with pytest.raises(UserError, match=words):
        adapter_of(made, tmp_path)
    (found,) = [f for f in check_job(made, facts()) if f.code == "ara-unusable"]
    assert found.severity == "error" and found.fix


def test_the_name_alone_tells_while_it_is_on_the_hub():
    def told(text: str) -> list[str]:
        return [f.message for f in check_job(with_ara(text), facts()) if f.code == "ara-unusable"]

    there = "ostris/accuracy_recovery_adapters/wan22_14b_{}_torchao_uint4.safetensors"
    assert told(there.format("i2v")) == [] and "text-to-image" in told(there.format("t2i"))[0]
    assert "needs an adapter" in told("")[0] and "no such file" in told("nowhere.safetensors")[0]


def test_our_own_may_be_called_anything_and_know_their_base(tmp_path):
    model = tmp_path / "model"
    for part in ("transformer", "transformer_2"):
        (model / part).mkdir(parents=True)
        (model / part / "config.json").write_text("{}")
        save_file({part: np.zeros((2, 8), np.float32)}, model / part / "diffusion_pytorch_model.safetensors")
    (model / "model_index.json").write_text('{"boundary_ratio": 0.9}')
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    own = {FINGERPRINT: "ab", "wanlora.ara.grid": "uint4"}
    named = NamedBase(path=str(model))
    known = facts(base=tmp_path, named=named, model=read_model(named, tmp_path))

    def told(high: str) -> list[str]:
        path = written(tmp_path / "t2v.safetensors", **own, **{"wanlora.base_identity.high_noise": high})
        assert read_adapter(path).ours
        return [f.message for f in check_job(with_ara(str(path)), known) if f.code == "ara-unusable"]

    assert told(identity([weights], times=False)) == []
    assert "another base model" in told("0" * 32)[0]


def test_a_quantized_base_is_warned_of_for_published_adapters_alone(tmp_path):
    def told(path: Path, dtype: str) -> list[str]:
        parts = {
            part: PartFacts(parameters=1, size_bytes=1, dtype=dtype if part == "transformer" else "BF16")
            for part in ("transformer", "transformer_2", "text_encoder")
        }
        known = facts(model=real_model(parts=parts))
        return [f.message for f in check_job(with_ara(str(path)), known) if f.code == "ara-quantized-base"]

    published = written(tmp_path / "wan22_14b_i2v_torchao_uint4.safetensors")
    ours = written(tmp_path / "ours_uint4.safetensors", **{FINGERPRINT: "ab", "wanlora.ara.grid": "uint4"})
    assert "F8_E4M3" in told(published, "F8_E4M3")[0] and "Q8_0" in told(published, "Q8_0")[0]
    assert [told(published, t) for t in ("BF16", "F16", "F32", "")] == [[]] * 4 and told(ours, "F8_E4M3") == []
