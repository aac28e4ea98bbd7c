"""Numbers in a LoRA file that are none, found before the run by whoever names the file: in every type of number, and
wherever in the file they stand."""

from pathlib import Path

import numpy as np
import pytest

from presets.facts import lora_values
from presets.facts.gather import gather
from presets.facts.lora_values import look_at_loras, loras_of
from presets.job.schema import Job
from presets.look import Look, LookEnded
from presets.rules.check import check_job
from tests.helpers.facts import gpu, job, machine
from tests.helpers.loras import pair, write_lora_file

FORMS = {
    "F64": (8, [0x7FF << 52, 0xFFF8 << 48]),
    "F32": (4, [0x7F800000, 0xFFC00000]),
    "F16": (2, [0x7C00, 0xFE00]),
    "BF16": (2, [0x7F80, 0xFFC0]),
    "F8_E4M3": (1, [0x7F, 0xFF]),
    "F8_E5M2": (1, [0x7C, 0xFE]),
}


def write(path: Path, dtype: str, *, bad: int | None, at: int = -1) -> str:
    """A LoRA of one pair of ones' likes, `bad` as the number `at`; returns the tensor's name that holds it."""
    size, _ = FORMS[dtype]
    values = np.full(16, 1, f"<u{size}")
    if bad is not None:
        values[at] = bad
    name = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
    entries = ", ".join(
        f'"{name.format(side)}": {{"dtype": "{dtype}", "shape": {shape},'
        f' "data_offsets": [{i * 8 * size}, {(i + 1) * 8 * size}]}}'
        for i, (side, shape) in enumerate((("A", [2, 4]), ("B", [4, 2])))
    )
    header = f"{{{entries}}}".encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    return name.format("A" if at % 16 < 8 else "B")


def merging(name: str) -> Job:
    return job(model={"merge": [{"path": name}]})


@pytest.mark.parametrize("dtype", FORMS)
def test_what_is_no_number_is_found_in_every_type(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.safetensors"
    write(path, dtype, bad=None)
    assert look_at_loras(merging(path.name), tmp_path, Look()) == {str(path): ""}
    for i, bad in enumerate(FORMS[dtype][1]):
        path = tmp_path / f"bad_{i}.safetensors"
        name = write(path, dtype, bad=bad, at=(0, -1)[i])
        assert look_at_loras(merging(path.name), tmp_path, Look()) == {
            str(path): f"{name} holds numbers that are not finite"
        }


def test_a_file_that_was_mended_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, "F32", bad=0x7F800000)
    assert look_at_loras(merging(path.name), tmp_path, Look())[str(path)]
    write(path, "F64", bad=None)
    assert look_at_loras(merging(path.name), tmp_path, Look()) == {str(path): ""}


def test_a_look_that_was_ended_reads_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.safetensors", "F32", bad=None)
    monkeypatch.setattr(lora_values, "_known", {})
    look = Look()
    look.end()
    with pytest.raises(LookEnded):
        look_at_loras(merging("a.safetensors"), tmp_path, look)


def test_a_whole_number_is_an_alpha_and_nothing_else(tmp_path: Path) -> None:
    path = write_lora_file(
        tmp_path / "a.safetensors", pair(width=4) | {"diffusion_model.blocks.0.self_attn.q.alpha": ()}
    )
    path.write_bytes(path.read_bytes().replace(b'"F16", "shape": []', b'"I16", "shape": []'))
    assert look_at_loras(merging(path.name), tmp_path, Look()) == {str(path): ""}
    path.write_bytes(path.read_bytes().replace(b'"F16"', b'"I16"'))
    assert "holds I16 numbers" in look_at_loras(merging(path.name), tmp_path, Look())[str(path)]


def test_a_scale_that_cannot_be_read_is_found(tmp_path: Path) -> None:
    path = write_lora_file(tmp_path / "a.safetensors", pair(width=4), {"lora_adapter_metadata": '{"lora_alpha": NaN}'})
    assert look_at_loras(merging(path.name), tmp_path, Look()) == {str(path): "has damaged metadata"}


def test_each_field_that_names_a_lora_is_looked_at_and_named(tmp_path: Path) -> None:
    names = ["high", "low", "merged", "accelerator", "accelerator_low"]
    for name in names:
        write(tmp_path / f"{name}.safetensors", "BF16", bad=0x7F80)
    made = job(
        target={"start_high": "high.safetensors", "start_low": "low.safetensors"},
        model={"merge": [{"path": "merged.safetensors"}, {"path": "gone.safetensors"}, {}]},
        sample={
            "prompts": [{"prompt": "a"}],
            "accelerator": "accelerator.safetensors",
            "accelerator_low": "accelerator_low.safetensors",
        },
    )
    fields = ["target.start_high", "target.start_low", "model.merge[0].path"]
    fields += ["sample.accelerator", "sample.accelerator_low"]
    assert list(loras_of(made, tmp_path)) == fields
    known = gather(made, tmp_path, out=tmp_path / "runs", machine=machine(gpu()))
    found = [f for f in check_job(made, known) if f.code == "lora-damaged"]
    assert [f.field for f in found] == fields and all(f.severity == "error" and f.fix for f in found)
    assert all(f"{n}.safetensors: diffusion_model.blocks.0" in f.message for n, f in zip(names, found, strict=True))
    quick = gather(made, tmp_path, out=tmp_path / "runs", machine=machine(gpu()), scenes=False)
    assert not [f for f in check_job(made, quick) if f.code == "lora-damaged"]
