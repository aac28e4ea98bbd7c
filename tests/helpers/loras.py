"""LoRA files for tests: written by hand in whatever naming, without torch."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from math import prod
from pathlib import Path

WIDTH = 5120


def write_lora_file(path: Path, tensors: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of zeros in fp16."""
    header, at = {}, 0
    for name, shape in tensors.items():
        size = 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header | ({"__metadata__": metadata} if metadata else {})).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    return path


def pair(module: str = "diffusion_model.blocks.0.self_attn.q", rank: int = 4, width: int = WIDTH):
    return {f"{module}.lora_A.weight": (rank, width), f"{module}.lora_B.weight": (width, rank)}


@cache
def lora_folder() -> Path:
    """LoRA files of the real model's widths, in a folder that is removed with the process."""
    folder = Path(tempfile.mkdtemp(prefix="loras-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_lora_file(folder / "any.safetensors", pair())
    (folder / "again.safetensors").symlink_to("any.safetensors")
    write_lora_file(folder / "orbit_high_noise.safetensors", pair())
    write_lora_file(folder / "orbit_low_noise.safetensors", pair())
    write_lora_file(folder / "rank32.safetensors", pair(rank=32))
    write_lora_file(folder / "small.safetensors", pair(width=1536))
    both = pair("transformer.blocks.0.attn1.to_q") | pair("transformer_2.blocks.0.attn1.to_q")
    write_lora_file(folder / "both.safetensors", both)
    image = {"diffusion_model.blocks.0.cross_attn.k_img.diff_b": (WIDTH,)}
    write_lora_file(folder / "wan21.safetensors", pair() | image)
    write_lora_file(folder / "t2v.safetensors", pair() | {"diffusion_model.patch_embedding.diff": (WIDTH, 16, 1, 2, 2)})
    write_lora_file(folder / "norms.safetensors", pair() | {"diffusion_model.blocks.0.norm3.diff": (WIDTH,)})
    return folder
