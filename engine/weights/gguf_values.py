"""The weights of a GGUF file as numbers, dequantized a few megabytes at a time by the package gguf, so that neither the
file nor a second copy of a tensor is ever in memory. Where they lie: `presets.base.tensor_files`."""

from pathlib import Path

import numpy as np
import torch

from engine.weights.read_into import read_into
from presets.base.safetensors_header import TensorPlace
from presets.base.tensor_files import QUANTS

CHUNK = 2**20  # bytes of the file at a time; the package takes up to 50 times as many meanwhile


def dequantize_into(file: Path, place: TensorPlace, values: torch.Tensor) -> None:
    """Fill a flat host tensor of any float type with a quantized tensor of the file. Raises UserError."""
    import gguf  # only now: most bases are none of its files

    kind = gguf.GGMLQuantizationType[place.dtype]
    block, size = QUANTS[place.dtype]
    step = CHUNK // size
    blocks = place.size // size
    raw = torch.empty(min(step, blocks) * size, dtype=torch.uint8)
    for first in range(0, blocks, step):
        count = min(step, blocks - first)
        read_into(file, place.begin + first * size, raw[: count * size])
        with np.errstate(all="ignore"):  # what is no number is refused once it is read
            numbers = gguf.quants.dequantize(raw[: count * size].numpy().reshape(1, -1), kind)
        values[first * block : (first + count) * block].copy_(torch.from_numpy(numbers.reshape(-1)))
