"""What the header of a safetensors file tells: every tensor's type, shape and place. No weight is read, no torch is
needed.

Format: 8 bytes header length (little endian), the header as JSON, then the tensors without a gap
(huggingface/safetensors, README). So a truncated file shows at once.
"""

import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

DTYPE_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "C64": 64,
}
MAX_HEADER = 100_000_000  # the limit of the safetensors format itself
AGAIN = "Download or copy this file again"


class Damaged(Exception):
    """A file of the model that cannot be used; the text says what about it, without its name."""

    def __init__(self, what: str, fix: str = AGAIN) -> None:
        self.what, self.fix = what, fix


class TensorPlace(NamedTuple):
    """One tensor of a file."""

    dtype: str  # as safetensors calls it: "BF16"
    shape: tuple[int, ...]
    begin: int  # first byte, counted from the start of the file
    size: int  # bytes
    strides: tuple[int, ...] | None = None  # of values, where they do not lie in the order of the shape


def json_object(content: bytes) -> dict[str, Any]:
    """A JSON object. Raises Damaged for anything else."""
    if content.startswith(b"version https://git-lfs"):
        raise Damaged("is a Git LFS pointer, the content itself was not fetched", "Run: git lfs pull")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise Damaged("is no valid JSON") from None
    if not isinstance(value, dict):
        raise Damaged("holds no JSON object")
    return value


def read_header(path: Path) -> dict[str, TensorPlace]:
    """The tensors of a safetensors file, whose size must fit its header to the byte.

    Raises OSError, and Damaged when the file is truncated or is none.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        start = f.read(8)
        if start == b"version ":
            raise Damaged("is a Git LFS pointer, the weights themselves were not fetched", "Run: git lfs pull")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= MAX_HEADER:
            raise Damaged("is no safetensors file" if size else "is empty (0 bytes)")
        if 8 + length > size:
            raise Damaged("is truncated inside its header")
        header = json_object(f.read(length))
    tensors: dict[str, TensorPlace] = {}
    places: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            fits = isinstance(dtype, str) and all(isinstance(n, int) and n >= 0 for n in [*shape, begin, end])
            fits = fits and (dtype not in DTYPE_BITS or (end - begin) * 8 == prod(shape) * DTYPE_BITS[dtype])
        except (TypeError, KeyError, ValueError):
            fits = False
        if not fits:
            raise Damaged(f"has a damaged header (tensor {name})")
        tensors[name] = TensorPlace(dtype, tuple(shape), 8 + length + begin, end - begin)
        places.append((begin, end))
    at = 0
    for begin, end in sorted(places):
        if begin != at:
            raise Damaged("has a damaged header (its tensors overlap or leave gaps)")
        at = end
    promised = 8 + length + at
    if promised != size:
        raise Damaged(
            f"is truncated: {promised - size:,} of {promised:,} bytes are missing"
            if promised > size
            else f"is {size - promised:,} bytes longer than its header says"
        )
    return tensors
