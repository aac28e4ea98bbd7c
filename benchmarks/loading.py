"""How long an expert takes to load, from its files and from the weight cache, and how much host memory that takes at
most.

    python -m benchmarks.loading [--tiny] [--precision float8] [--dir DIR] [--cold] [--json FILE]

Writes a diffusers folder of random weights of the real shape (28 GB in bf16 for one expert; --tiny: 8 blocks of width
1024), loads it, writes the cache, loads again from it, each in a process of its own, so that peaks are not mixed.
--cold also drops the files from the page cache before each load. Beside the times: peak memory above what the
interpreter held before.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.random_expert import REAL, empty_model
from engine.system.placement import Placement
from engine.weights.load_expert import load_outer_modules
from engine.weights.model_files import ModelFiles, open_model_files
from engine.weights.packed_blocks import PackedBlocks
from engine.weights.weight_cache import cached_blocks
from presets.caches.weight_cache import list_cache

SMALL = {
    **REAL,
    "num_attention_heads": 8,
    "attention_head_dim": 128,
    "text_dim": 256,
    "freq_dim": 64,
    "ffn_dim": 2816,
    "num_layers": 8,
}
FULL = {**REAL, "num_layers": 40}
LEAST = {**SMALL, "num_attention_heads": 1, "num_layers": 1}
MIB = 2**20
T = TypeVar("T")


WRITERS = 8  # processes that write an expert: two experts took one of them 105 s on one machine, these 60 s on another


def write_expert(folder: Path, config: dict[str, Any], name: str = "transformer") -> int:
    """One expert in bf16 as a part of a diffusers folder, a shard for each block; its bytes. Weights differ by name."""
    from diffusers import WanTransformer3DModel

    part = folder / name
    part.mkdir(parents=True)
    blocks = list(range(config["num_layers"]))
    weight_map = write_shard(part, config, None)
    if torch.cuda.is_available():
        with ProcessPoolExecutor(WRITERS, mp_context=get_context("spawn")) as pool:
            written = list(pool.map(partial(write_shard, part, config), blocks))
    else:
        written = [write_shard(part, config, block) for block in blocks]
    for one in written:
        weight_map |= one
    with torch.device("meta"):
        full = dict(WanTransformer3DModel(**{**config, "num_layers": 0}).config) | {"num_layers": config["num_layers"]}
    (part / "config.json").write_text(json.dumps({k: v for k, v in full.items() if not k.startswith("_")}))
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if not (folder / "model_index.json").exists():
        (folder / "model_index.json").write_text("{}")
    return sum(f.stat().st_size for f in part.iterdir())


def write_shard(part: Path, config: dict[str, Any], block: int | None) -> dict[str, str]:
    """A block of an expert, or what is around the blocks; which file each of its tensors is in."""
    from safetensors.torch import save_file

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(len(part.name) * 1000 + (0 if block is None else block + 1))
    if block is None:
        file, state = "outer.safetensors", empty_model(config, device, torch.bfloat16, num_layers=0).state_dict()
    else:
        one = empty_model(config, device, torch.bfloat16, num_layers=1).blocks[0].state_dict()
        file, state = f"block-{block:02}.safetensors", {f"blocks.{block}.{k}": t for k, t in one.items()}
    save_file({k: t.to("cpu", torch.bfloat16).contiguous() for k, t in state.items()}, part / file)
    return dict.fromkeys(state, file)


def drop_pages(folder: Path) -> None:
    """Let the system forget the files' contents, so that they come from the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def memory(field: str) -> int:
    """Bytes of this process in host memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def load_once(folder: Path, cache: Path, precision: str, least: Path) -> dict[str, Any]:
    """Load in this process. Seconds, bytes, and the peak of host memory above what was held before: after the smallest
    expert, in folder `least`, was loaded, so that the code that loads is in memory, too."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    placement = Placement.on(device)
    torch.zeros(1, device=device)
    source = open_model_files(folder)
    source.expert("high_noise")
    phases: dict[str, float] = {}
    last = time.perf_counter()

    def progress(done: int, total: int, text: str) -> None:
        nonlocal last
        now = time.perf_counter()
        phases[text] = phases.get(text, 0.0) + now - last
        last = now

    def load(source: ModelFiles, cache: Path) -> PackedBlocks:
        return cached_blocks(source, "high_noise", precision, placement, progress=progress, folder=cache, warn=print)

    load(open_model_files(least), least / "cache")
    phases.clear()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (man 5 proc)
    before = memory("VmRSS")
    start = last = time.perf_counter()
    buffers, layout = load(source, cache)
    blocks = time.perf_counter() - start
    peak = memory("VmHWM") - before
    load_outer_modules(source, "high_noise", placement)
    part = source.expert("high_noise")
    return {
        "seconds": blocks,
        "seconds_outer": time.perf_counter() - start - blocks,
        "phases": phases,
        "packed_bytes": len(buffers) * layout.bytes,
        "peak_bytes": peak,
        "source_block_bytes": sum(s.place.size for n, s in part.stored.items() if n.startswith("blocks.0.")),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def in_a_process(call: Callable[..., T], *args: Any) -> T:
    """With memory of its own: forked, so that nothing is imported again, unless there is a card: a CUDA context does
    not live through a fork."""
    context = get_context("spawn" if torch.cuda.is_available() else "fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call, *args).result()


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Time and peak host memory of loading an expert, first and from the cache."
    )
    parser.add_argument("--tiny", action="store_true", help="8 blocks of width 1024")
    parser.add_argument("--precision", default="float8")
    parser.add_argument(
        "--dir", type=Path, help="where the folder is written and removed again (default: the system's temporary one)"
    )
    parser.add_argument("--cold", action="store_true", help="also from the disk instead of the page cache")
    parser.add_argument(
        "--check", action="store_true", help="fail when a load held more than packed and four source blocks"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.dir) as temporary:
        folder, cache = Path(temporary) / "model", Path(temporary) / "cache"
        least = Path(temporary) / "least"
        in_a_process(write_expert, least, LEAST)
        size = in_a_process(write_expert, folder, SMALL if args.tiny else FULL)
        print(f"one expert of {size / 2**30:.2f} GiB, into {args.precision}; torch {torch.__version__}")
        for case in ("first", "cached", *(("cached, cold", "first, cold") if args.cold else ())):
            if "cold" in case:
                drop_pages(folder)
                drop_pages(cache)
            if case == "first, cold":
                for entry in list_cache(cache):
                    entry.path.unlink()
            row = {"case": case, **in_a_process(load_once, folder, cache, args.precision, least)}
            rows.append(row)
            beside = row["peak_bytes"] - row["packed_bytes"]
            print(
                f"{case:12}  {row['seconds']:7.2f} s  "
                + "  ".join(f"{k} {v:.2f} s" for k, v in row["phases"].items() if v >= 0.005)
                + f"  outer modules {row['seconds_outer']:.2f} s  packed {row['packed_bytes'] / MIB:.0f} MiB, peak"
                f" {row['peak_bytes'] / MIB:.0f} MiB: {beside / row['source_block_bytes']:.2f} source blocks beside"
                " them"
            )
    print(f"cached / first: {rows[1]['seconds'] / rows[0]['seconds']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return int(args.check and any(r["peak_bytes"] > r["packed_bytes"] + 4 * r["source_block_bytes"] for r in rows))


if __name__ == "__main__":
    sys.exit(main())
