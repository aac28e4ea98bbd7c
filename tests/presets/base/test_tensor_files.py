"""Headers of GGUF files and of what torch.save writes, against the readers of their own packages."""

import io
import pickle
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from presets.base.comfy_files import unreadable
from presets.base.safetensors_header import Damaged, TensorPlace
from presets.base.tensor_files import GGML_TYPES, QUANTS, holds_weights, read_gguf, read_tensors, read_torch_file
from tests.helpers.comfy_files import write_gguf


def said(path: Path) -> str:
    with pytest.raises(Damaged) as error:
        read_tensors(path)
    assert error.value.fix
    return error.value.what


def test_types_are_those_of_the_package():
    ours = {name: (number, block, size) for number, (name, block, size) in GGML_TYPES.items()}
    for kind in gguf.GGMLQuantizationType:
        if kind.name in ours:
            assert ours[kind.name] == (kind.value, *gguf.GGML_QUANT_SIZES[kind])
    assert set(ours) <= set(gguf.GGMLQuantizationType.__members__)
    assert {kind.name for kind in gguf.quants._type_traits} >= set(QUANTS)


def test_a_gguf_header_is_read_as_its_package_reads_it(tmp_path):
    torch.manual_seed(0)
    tensors = {
        "patch_embedding.weight": torch.randn(4, 36, 1, 2, 2),
        "a.weight": torch.randn(6, 64),
        "b.weight": torch.randn(2, 3, 32),
        "a.bias": torch.randn(5),
    }
    write_gguf(tmp_path / "a.gguf", tensors, "Q8_0")
    found = read_gguf(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert list(found) == [t.name for t in reader.tensors]
    for theirs in reader.tensors:
        ours = found[theirs.name]
        assert ours.shape == tuple(tensors[theirs.name].shape) and ours.dtype == theirs.tensor_type.name
        assert (ours.begin, ours.size) == (theirs.data_offset, theirs.n_bytes)
    assert found["a.weight"].dtype == "Q8_0"


def gguf_of(path: Path, architecture: str = "wan", **more) -> Path:
    """One tensor of 2 x 32 numbers."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in more.items():
        writer.add_array(f"comfy.gguf.orig_shape.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("w", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("kind", "value"), [("string", "abc"), ("uint32", 5), ("array", [2.0, 32.0])])
def test_a_shape_in_gguf_that_is_none(tmp_path, kind, value):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "wan")
    getattr(writer, f"add_{kind}")("comfy.gguf.orig_shape.w", value)
    writer.add_tensor("w", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Damaged) as error:
        read_tensors(tmp_path / "a.gguf")
    assert error.value.what == "has a damaged header (shape of w)"


def test_a_reshaped_tensor_has_the_shape_it_had(tmp_path):
    assert read_gguf(gguf_of(tmp_path / "a.gguf", w=[4, 16]))["w"].shape == (4, 16)
    assert "shape of w" in said(gguf_of(tmp_path / "b.gguf", w=[4, 17]))


def test_what_is_no_whole_gguf_file_of_wan(tmp_path):
    file = gguf_of(tmp_path / "a.gguf")
    content = file.read_bytes()
    assert "of the architecture flux" in said(gguf_of(tmp_path / "b.gguf", "flux"))
    for end, words in ((0, "is empty"), (3, "no GGUF file"), (20, "inside its header"), (-1, "1 of")):
        file.write_bytes(content[:end])
        assert words in said(file)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "Git LFS pointer" in said(file)
    file.write_bytes(content[:4] + bytes([9]) + content[5:])
    assert "of version 9" in said(file)
    file.write_bytes(content[:8] + b"\xff" * 8 + content[16:])  # tensors without end
    assert "header" in said(file)


def test_an_unknown_type_is_named(tmp_path):
    file = gguf_of(tmp_path / "a.gguf")
    content = file.read_bytes()
    at = content.index(b"w" + (2).to_bytes(4, "little")) + 1 + 4 + 16  # name, number of sides, sides
    file.write_bytes(content[:at] + (40).to_bytes(4, "little") + content[at + 4 :])  # NVFP4
    (place,) = read_gguf(file).values()
    assert place.dtype == "GGML type 40" and unreadable({"w.weight": place}) == "GGML type 40 (w.weight)"


def raw(path: Path, place: TensorPlace, dtype: torch.dtype) -> torch.Tensor:
    """The tensor that the place says, read without torch's own reader."""
    content = torch.frombuffer(bytearray(path.read_bytes()[place.begin : place.begin + place.size]), dtype=dtype)
    return content.as_strided(place.shape, place.strides) if place.strides else content.view(place.shape)


def test_places_in_a_file_of_torch(tmp_path):
    torch.manual_seed(0)
    both = torch.randn(6, 4)
    state = {
        "a": torch.randn(3, 4).bfloat16(),
        "b": torch.tensor(2.5),
        "upper": both[:3],
        "lower": both[3:],  # of one storage
        "turned": torch.randn(3, 4, 2, 2, 2).contiguous(memory_format=torch.channels_last_3d),
        "parameter": torch.nn.Parameter(torch.randn(5).half()),
        "none": torch.zeros(0, 3),
    }
    torch.save(state, tmp_path / "a.pth")
    found = read_torch_file(tmp_path / "a.pth")
    for name, t in torch.load(tmp_path / "a.pth", weights_only=True).items():
        if name == "none":
            continue
        assert torch.equal(raw(tmp_path / "a.pth", found[name], t.dtype), t), name
    assert (found["a"].dtype, found["parameter"].dtype, found["none"].shape) == ("BF16", "F16", (0, 3))
    assert found["turned"].strides is not None and found["upper"].strides is None
    module = torch.nn.Linear(2, 3)
    torch.save(module.state_dict(), tmp_path / "b.pth")  # an OrderedDict with metadata
    assert set(read_tensors(tmp_path / "b.pth")) == {"weight", "bias"}


class Program:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_a_pickle_with_a_program_in_it_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "was-run"
    torch.save({"a": torch.zeros(2), "b": Program(mark)}, tmp_path / "a.pth")
    assert "may hold a program" in said(tmp_path / "a.pth") and not mark.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert mark.exists()  # it is one


def test_what_is_no_state_dict(tmp_path):
    file = tmp_path / "a.pth"
    for value, words in (
        ([1, 2], "no state dict"),
        ({"a": torch.zeros(1), "step": 3}, "'step', which is no tensor"),
        ({}, "no state dict"),
        (torch.nn.Linear(1, 1), "more than plain tensors"),
    ):
        torch.save(value, file)
        assert words in said(file)
    torch.save({"a": torch.zeros(200)}, file, _use_new_zipfile_serialization=False)
    assert "before 1.6" in said(file)
    torch.save({"a": torch.zeros(200)}, file)
    file.write_bytes(file.read_bytes()[:-300])
    assert "is truncated" in said(file)
    file.write_bytes(b"")
    assert "is empty" in said(file)
    with zipfile.ZipFile(file, "w") as entries:
        entries.writestr("a/data.pkl", pickle.dumps({"a": 1})[:-3])
    assert "damaged list" in said(file)
    with zipfile.ZipFile(file, "w") as entries:
        entries.writestr("a/x", b"")
    assert "no state dict of torch.save" in said(file)


def test_values_that_are_not_there(tmp_path):
    torch.save({"a": torch.zeros(200)}, tmp_path / "a.pth")
    short = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(short, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, content[:10] if info.filename.endswith("data/0") else content)
    (tmp_path / "a.pth").write_bytes(short.getvalue())
    assert "too few values of a" in said(tmp_path / "a.pth")


def test_which_files_hold_weights():
    assert all(map(holds_weights, ("a.safetensors", "b/c.GGUF", "d.pth")))
    assert not any(map(holds_weights, ("a.json", "pth", "a.safetensors.index.json", "a.ckpt")))
