"""Safetensors files that are the same bytes whenever the same is written: the library orders metadata by chance.

What stands in the metadata of a LoRA is `engine.adapters.lora_metadata`'s.
"""

import hashlib
import json
from pathlib import Path

import torch

HASH = "modelspec.hash_sha256"
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write host tensors and metadata in the order of their names; HASH, of all bytes behind the header, comes with
    them. Format: 8 bytes with the header's length, the header as JSON filled up with spaces to a multiple of 8, data
    (github.com/huggingface/safetensors)."""
    ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
    entries, end, digest = {}, 0, hashlib.sha256()
    for name, tensor in ordered.items():
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end := end + tensor.nbytes],
        }
        digest.update(_bytes(tensor))
    about = metadata | {HASH: f"0x{digest.hexdigest()}"}
    header = json.dumps({"__metadata__": dict(sorted(about.items())), **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        for tensor in ordered.values():
            f.write(_bytes(tensor))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
