"""What two GPUs of one host do at once: copies of packed blocks from host memory, and sums of LoRA gradients.

    python -m benchmarks.two_gpus --gib 15 --json two.json        (two NVIDIA cards of one host, 48 GiB of host RAM)
    python -m benchmarks.two_gpus --tiny                           (the same code on the CPU, gloo in NCCL's place)

Two questions of training on several GPUs. May both ranks read ONE copy of the packed blocks, in shared memory that each
registers for itself, as fast as a copy of its own? And what does a sum in the order of the ranks, which has the bits of
one GPU that accumulates, cost beside all_reduce, which adds as it likes? Ratios are to one rank alone, and to
all_reduce.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

GIB = 2**30
BLOCK = 336 * 2**20  # bytes of one block in float8
LORA = 76_677_120  # parameters of rank 16 on the ten linears of 40 blocks
ROUNDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=15.0, help="packed blocks of one expert")
    parser.add_argument("--tiny", action="store_true", help="a few MiB on the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    size = 2**22 if args.tiny else int(args.gib * GIB)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        mp.spawn(_rank, args=(Path(folder), size, args.tiny), nprocs=2)
        found = json.loads((Path(folder) / "found.json").read_text())
    for name, value in found.items():
        print(f"{name:<44}{value:>12.3f}" if isinstance(value, float) else f"{name:<44}{value:>12}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


def _rank(rank: int, folder: Path, size: int, tiny: bool) -> None:
    device = torch.device("cpu") if tiny else torch.device("cuda", rank)
    if not tiny:
        torch.cuda.set_device(device)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo" if tiny else "nccl", store=store, rank=rank, world_size=2)
    found: dict[str, Any] = {"card": "cpu" if tiny else torch.cuda.get_device_name(device)}
    own = torch.empty(size, dtype=torch.uint8)
    own.fill_(rank)
    found |= _copies("own copy", own, rank, device)
    del own
    if rank == 0:
        with (folder / "blocks").open("wb") as f:
            os.posix_fallocate(f.fileno(), 0, size)
    dist.barrier()
    shared = torch.from_file(str(folder / "blocks"), shared=True, size=size, dtype=torch.uint8)
    found |= _copies("one shared copy", shared, rank, device)
    found |= _sums(device, 4096 if tiny else LORA)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _copies(name: str, host: torch.Tensor, rank: int, device: torch.device) -> dict[str, Any]:
    """GiB/s from host memory to the device, block by block: rank 0 alone, then both at once (the slower of the two)."""
    block = min(BLOCK, host.numel() // 2)
    target = torch.empty(block, dtype=torch.uint8, device=device)
    began = time.perf_counter()
    if device.type == "cuda":
        assert int(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), host.numel(), 0)) == 0
    registered = time.perf_counter() - began

    def copy() -> None:
        for start in range(0, host.numel() - block + 1, block):
            target.copy_(host[start : start + block], non_blocking=True)

    bytes_copied = host.numel() // block * block
    dist.barrier()
    alone = _seconds(copy, device) if rank == 0 else 0.0
    dist.barrier()
    both = torch.tensor([_seconds(copy, device)], device=device)
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    if device.type == "cuda":
        torch.cuda.cudart().cudaHostUnregister(host.data_ptr())
    rate = bytes_copied / GIB
    return {
        f"{name}: seconds to register": registered,
        f"{name}: GiB/s, one rank alone": rate / alone if alone else 0.0,
        f"{name}: GiB/s of each, both at once": rate / float(both),
    }


def _sums(device: torch.device, count: int) -> dict[str, Any]:
    """Milliseconds of summing fp32 gradients over both ranks, and whether the ordered sum has the bits of one GPU that
    accumulates."""
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(count, generator=generator).to(device) for _ in range(2)]
    mine = gradients[dist.get_rank()]
    gathered = [torch.empty_like(mine) for _ in range(2)]
    summed = torch.empty_like(mine)

    def unordered() -> None:
        summed.copy_(mine)
        dist.all_reduce(summed)

    def ordered() -> None:
        dist.all_gather(gathered, mine)
        torch.add(gathered[0], gathered[1], out=summed)

    reduce, gather = _seconds(unordered, device), _seconds(ordered, device)
    accumulated = torch.zeros_like(mine)
    for gradient in gradients:
        accumulated += gradient
    return {
        "all_reduce, ms": reduce * 1e3,
        "gathered and summed in rank order, ms": gather * 1e3,
        "ratio to all_reduce": gather / reduce,
        "equal to one GPU's accumulation": bool(torch.equal(summed, accumulated)),
    }


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """Of one run, the best of three after a first one."""
    best = float("inf")
    for i in range(ROUNDS + 1):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        if i:
            best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    raise SystemExit(main())
