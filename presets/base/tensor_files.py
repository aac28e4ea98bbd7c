"""What a file of weights tells before any weight is read, whichever its format: every tensor's type, shape and place.
No torch, and no package of the format, is needed.

GGUF (ggml-org/ggml, docs/gguf.md): key-value pairs, then name, sides, type and offset of every tensor, the sides from
the fastest up, so the reverse of torch's. What torch.save writes is a zip whose entries are stored as they are:
`data.pkl` says which tensor lies where in `data/N`. That pickle is read with the few names that plain tensors need, so
nothing of it can run, as with torch's own `weights_only`. The third format has a module of its own:
`safetensors_header`.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from presets.base.safetensors_header import DTYPE_BITS, MAX_HEADER, Damaged, TensorPlace, read_header

# ggml's number of a type -> (name, values in a block, bytes of a block)
GGML_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
}  # fmt: skip
# what the package gguf dequantizes: name -> (values in a block, bytes of a block)
QUANTS = {name: (block, size) for name, block, size in GGML_TYPES.values() if block > 1}
FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
ARCHITECTURES = {"wan", "t5", "t5encoder", "pig", ""}  # of GGUF files of Wan's parts, as the converters name them
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MOST_SIDES = 8
SHAPE_KEY = "comfy.gguf.orig_shape."  # of a tensor that the converter of ComfyUI-GGUF has reshaped
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9c"  # how files of torch before 1.6 begin
OTHERWISE = "Take the .safetensors file of the same weights"


def read_tensors(path: Path) -> dict[str, TensorPlace]:
    """The tensors of a file of weights. Raises OSError, and Damaged when it is truncated, or is nothing that is read
    here."""
    return FORMATS[path.suffix.lower()](path)


def holds_weights(name: str) -> bool:
    """Whether a file is one of weights, by its name."""
    return Path(name).suffix.lower() in FORMATS


class _Gguf:
    """A GGUF file's header, read from its start. Raises Damaged where the file ends too early."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def bytes(self, count: int) -> bytes:
        content = self._file.read(count) if count <= self._size else b""
        if len(content) < count:
            raise Damaged("is truncated inside its header")
        return content

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_kind(kind))
        inner, count = self.number("I"), self.number("Q")
        if inner in (_STRING, _ARRAY):
            for _ in range(count):  # a vocabulary: nobody asks for it
                self.value(inner)
            return None
        letter = _kind(inner)
        return struct.unpack(f"<{count}{letter}", self.bytes(count * struct.calcsize(f"<{letter}")))


def _kind(kind: int) -> str:
    if kind not in _NUMBERS:
        raise Damaged(f"has a damaged header (a value of the unknown type {kind})")
    return _NUMBERS[kind]


def read_gguf(path: Path) -> dict[str, TensorPlace]:
    """The tensors of a GGUF file; a type that is not known is named `GGML type N`. Raises OSError, Damaged."""
    size = path.stat().st_size
    with path.open("rb") as f:
        start = f.read(4)
        if start == b"vers":
            raise Damaged("is a Git LFS pointer, the weights themselves were not fetched", "Run: git lfs pull")
        if start != b"GGUF":
            raise Damaged("is no GGUF file" if size else "is empty (0 bytes)")
        header = _Gguf(f, size)
        version = header.number("I")
        if version not in (2, 3):
            raise Damaged(f"is a GGUF file of version {version & 0xFFFF or version}, and 2 and 3 are read", OTHERWISE)
        tensors, pairs = header.number("Q"), header.number("Q")
        said: dict[str, Any] = {}
        for _ in range(pairs):
            key = header.text()
            said[key] = header.value(header.number("I"))
        kind = said.get("general.architecture", "")
        if kind not in ARCHITECTURES:
            raise Damaged(
                f"is a GGUF file of the architecture {kind}, not of wan", "Give a GGUF file of Wan 2.2 I2V A14B"
            )
        entries = [_entry(header, said) for _ in range(tensors)]
        align = said.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1:
            raise Damaged("has a damaged header (general.alignment)")
        begin = -(-f.tell() // align) * align
    found = {name: TensorPlace(dtype, shape, begin + at, count) for name, dtype, shape, at, count in entries}
    promised = max((place.begin + place.size for place in found.values()), default=0)
    if promised > size:
        raise Damaged(f"is truncated: {promised - size:,} of {promised:,} bytes are missing")
    return found


def _entry(header: _Gguf, said: dict[str, Any]) -> tuple[str, str, tuple[int, ...], int, int]:
    """(name, type, shape, offset, bytes) of the next tensor."""
    name, count = header.text(), header.number("I")
    if count > MOST_SIDES:
        raise Damaged(f"has a damaged header (tensor {name})")
    sides = tuple(header.number("Q") for _ in range(count))
    number, at = header.number("I"), header.number("Q")
    dtype, block, size = GGML_TYPES.get(number, (f"GGML type {number}", 0, 0))
    if block and sides and sides[0] % block:
        raise Damaged(f"has a damaged header (tensor {name})")
    whole = prod(sides)
    shape = said.get(SHAPE_KEY + name) or sides[::-1]
    if not isinstance(shape, tuple) or not all(isinstance(n, int) for n in shape) or prod(shape) != whole:
        raise Damaged(f"has a damaged header (shape of {name})")
    return name, dtype, shape, at, whole // block * size if block else 0


class _Storage(NamedTuple):
    dtype: str
    key: str  # of its entry


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    whole = _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
    if not isinstance(storage, _Storage) or min((whole.offset, *whole.shape, *whole.strides)) < 0:
        raise ValueError("no tensor")
    return whole


class _PlainTensors(pickle.Unpickler):
    """Reads a pickle of plain tensors. Every other name in it is refused before it could be looked up."""

    _KNOWN: dict[tuple[str, str], Any] = {  # noqa: RUF012
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        **{("torch", storage): dtype for storage, dtype in _STORAGES.items()},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise Damaged(
                f"is a pickle of more than plain tensors ({module}.{name}), which may hold a program", OTHERWISE
            )
        return self._KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, _ = pid
        if dtype not in DTYPE_BITS:
            raise ValueError("no storage of numbers")
        return _Storage(dtype, str(key))


def read_torch_file(path: Path) -> dict[str, TensorPlace]:
    """The tensors of a state dict that torch.save has written. Nothing in it is run. Raises OSError, Damaged."""
    with path.open("rb") as f:
        try:
            with zipfile.ZipFile(f) as entries:
                return _stored(f, entries)
        except zipfile.BadZipFile:
            f.seek(0)
            start = f.read(8)
    if start.startswith(b"PK"):
        raise Damaged("is truncated, or no file that torch.save has written")
    if start.startswith(_OLD_TORCH):
        raise Damaged("is in the form of torch before 1.6", OTHERWISE)
    raise Damaged("is no file that torch.save has written" if start else "is empty (0 bytes)")


def _stored(f: BinaryIO, entries: zipfile.ZipFile) -> dict[str, TensorPlace]:
    infos = {info.filename: info for info in entries.infolist()}
    head = next((name for name in infos if name.endswith("/data.pkl")), None)
    if head is None or infos[head].file_size > MAX_HEADER:
        raise Damaged("is a zip, but holds no state dict of torch.save", OTHERWISE)
    with entries.open(head) as content:
        try:
            state = _PlainTensors(content).load()
        except (Damaged, OSError):
            raise
        except Exception:  # of whatever kind: a damaged pickle may raise any
            raise Damaged("has a damaged list of its tensors") from None
    if not isinstance(state, dict) or not state:
        raise Damaged("holds no state dict", OTHERWISE)
    found: dict[str, TensorPlace] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise Damaged(f"holds {name!r}, which is no tensor, beside its weights", OTHERWISE)
        info = infos.get(f"{head.removesuffix('data.pkl')}data/{tensor.storage.key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise Damaged(f"does not hold the values of {name}")
        found[name] = _place(f, name, tensor, info)
    return found


def _place(f: BinaryIO, name: str, tensor: _Tensor, info: zipfile.ZipInfo) -> TensorPlace:
    """Where a tensor's values lie in the file."""
    dtype, shape, strides = tensor.storage.dtype, tensor.shape, tensor.strides
    item = DTYPE_BITS[dtype] // 8
    # from its first value to its last
    span = 0 if 0 in shape else 1 + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if (tensor.offset + span) * item > info.file_size:
        raise Damaged(f"holds too few values of {name}")
    f.seek(info.header_offset + 26)
    named, extra = struct.unpack("<HH", f.read(4))
    begin = info.header_offset + 30 + named + extra + tensor.offset * item
    plain = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    as_stored = all(side == 1 or a == b for side, a, b in zip(shape, strides, plain, strict=True))
    return TensorPlace(dtype, shape, begin, span * item, None if as_stored else strides)


FORMATS: dict[str, Callable[[Path], dict[str, TensorPlace]]] = {
    ".safetensors": read_header,
    ".gguf": read_gguf,
    ".pth": read_torch_file,
}
SUFFIXES_TEXT = ".safetensors, .gguf or .pth"
