"""Quantized tensors of GGUF files, a chunk at a time, against the package's own reading of the whole."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from engine.weights import gguf_values
from engine.weights.model_files import StoredTensor
from presets.base.tensor_files import QUANTS, read_gguf

ROWS, WIDTH = 5, 512


def blocks(kind: str) -> np.ndarray:
    """Random blocks of a type; but for IQ1_M, whose scales are in pieces, every scale is an ordinary number."""
    block, size = QUANTS[kind]
    content = np.random.default_rng(0).integers(0, 255, (ROWS, WIDTH // block, size), dtype=np.uint8)
    content[content & 0x7C == 0x7C] ^= 0x40  # no half whose exponent would make it infinite, wherever it lies
    return content.reshape(ROWS, -1)


@pytest.fixture
def file(tmp_path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "wan")
    for kind in QUANTS:
        writer.add_tensor(f"{kind}.weight", blocks(kind), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "a.gguf"


@pytest.mark.parametrize("chunk", [700, gguf_values.CHUNK])
def test_values_are_those_of_the_package(file, monkeypatch, chunk):
    monkeypatch.setattr(gguf_values, "CHUNK", chunk)
    whole = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}
    places = read_gguf(file)
    assert places.keys() == whole.keys() and len(places) == len(QUANTS) >= 10
    for name, place in places.items():
        stored = StoredTensor(name, file, place)
        assert stored.readable and place.shape == (ROWS, WIDTH)
        into = torch.empty(stored.bytes + 64, dtype=torch.uint8)
        ours, scale = stored.raw(into)
        assert scale is None and ours.dtype == torch.float32 and ours.data_ptr() == into.data_ptr()
        assert np.array_equal(ours.numpy(), whole[name], equal_nan=True) and whole[name].any(), name
        halves = torch.from_numpy(whole[name]).bfloat16()
        assert torch.equal(stored.read(torch.bfloat16).nan_to_num(), halves.nan_to_num())
