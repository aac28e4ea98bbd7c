"""What two GPUs of one host do at once: copies of packed blocks from host memory, and sums of LoRA gradients.

    python -m benchmarks.two_gpus --gib 15 --json two.json        (two NVIDIA cards of one host, 48 GiB of host RAM)
    python -m benchmarks.two_gpus --tiny                           (the same code on the CPU, gloo in NCCL's place)

Three questions of training on several GPUs. May both ranks read ONE copy of the packed blocks, in shared memory that
each registers for itself, as fast as a copy of its own? And what does a sum in the order of the ranks, which has the
bits of one GPU that accumulates, cost beside all_reduce, which adds as it likes? And how much of it is left where
gradients are sent while the way back goes on (engine.parallel.ordered_sum)? Ratios are to one rank alone, and to
all_reduce.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from engine.parallel.ordered_sum import OrderedSum

GIB = 2**30
BLOCK = 336 * 2**20  # bytes of one block in float8
LORA = 76_677_120  # parameters of rank 16 on the ten linears of 40 blocks
BLOCKS, SIDES = 40, 20  # of that LoRA, and parameters of each
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
    found |= _ahead(device, 4000 if tiny else LORA)
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


def _ahead(device: torch.device, count: int) -> dict[str, Any]:
    """Milliseconds that the exchange adds to a way back of 40 blocks, each some products and then its gradients; behind
    it, and while it goes on."""
    generator, each = torch.Generator().manual_seed(2), count // (BLOCKS * SIDES)
    names = [f"{block}.{side}" for block in range(BLOCKS) for side in range(SIDES)]
    parameters = {name: torch.nn.Parameter(torch.zeros(each, device=device)) for name in names}
    gradients = [torch.randn(len(names), each, generator=generator).to(device) for _ in range(2)]
    side = 64 if device.type == "cpu" else 8192
    work = torch.randn(side, side, generator=generator).to(device, torch.bfloat16)

    def gather(mine: torch.Tensor) -> list[torch.Tensor]:
        out = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(out, mine)
        return out

    def back() -> None:
        for parameter in parameters.values():
            parameter.grad = None
        for block in reversed(range(BLOCKS)):
            for _ in range(6):
                work @ work
            mine = names[block * SIDES : (block + 1) * SIDES]
            rows = gradients[dist.get_rank()][block * SIDES : (block + 1) * SIDES]
            torch.autograd.backward([parameters[name] for name in mine], [row.clone() for row in rows])

    def step(ahead: bool) -> None:
        total = OrderedSum(parameters, gather, dist.get_rank())
        with total.kept_apart([[1] * len(names)] * 2, ahead=ahead):
            back()
            total.send_rest()
        total.finish()

    found: dict[str, Any] = {"way back, ms": _seconds(back, device) * 1e3}
    right = gradients[0] + gradients[1]
    for name, ahead in (("behind it", False), ("while it goes on", True)):
        found[f"exchange {name}, ms more"] = _seconds(partial(step, ahead), device) * 1e3 - found["way back, ms"]
        grads = [p.grad for p in parameters.values() if p.grad is not None]
        same = all(torch.equal(grad, row) for grad, row in zip(grads, right, strict=True))
        found[f"exchange {name}: as accumulated"] = same
    return found


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
