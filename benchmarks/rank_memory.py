"""What the processes of a training hold in host memory, by what brings it. The tables of docs/scaling.md.

    python -m benchmarks.rank_memory                    (two ranks without a model: on two cards, else on the CPU)
    python -m benchmarks.rank_memory --of PID           (a training that runs: all processes below this one, by kind)

MiB, shared pages divided among those that map them (PSS); anonymous memory is what a process has of its own. Of the
ranks the first is shown. What they do in turn is what a run does before it reads weights, and one compilation. A data
worker's memory on 4K clips is benchmarks.worker_memory's.
"""

import argparse
import os
import platform
import socket
import subprocess
import sys
from collections import defaultdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

RANKS = 2
KINDS = {  # found in a command line, the first that is
    "compile_worker": "compiler's processes",
    "decode_worker": "data workers",
    "torch.distributed.run": "torchrun",
    "torchrun": "torchrun",
    "engine": "trainers",
}


def held(pid: int) -> tuple[float, float]:
    """MiB of a process: (PSS, of it anonymous)."""
    rows = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    pss, anonymous = (int(rows[key].split()[0]) / 1024 for key in ("Pss", "Pss_Anon"))
    return pss, anonymous


def of_training(pid: int) -> None:
    """Print what it and all processes below it hold, by kind."""
    root, by_kind = psutil.Process(pid), defaultdict[str, list[tuple[float, float]]](list)
    for process in [root, *root.children(recursive=True)]:
        command = " ".join(process.cmdline())
        by_kind[next((kind for part, kind in KINDS.items() if part in command), command[:40])].append(held(process.pid))
    print(f"{'':<28}{'processes':>10}{'PSS':>8}{'anonymous':>11}")
    for kind, found in by_kind.items():
        print(f"{kind:<28}{len(found):>10}{sum(pss for pss, _ in found):>8.0f}{sum(own for _, own in found):>11.0f}")


class Stages:
    """Prints what each has added."""

    def __init__(self, shown: bool) -> None:
        self._shown, self._before = shown, (0.0, 0.0)

    def show(self, name: str) -> None:
        if not self._shown:
            return
        now = held(os.getpid())
        below = [held(child.pid) for child in psutil.Process().children(recursive=True)]
        more = f"{now[0] - self._before[0]:>8.0f}{now[1] - self._before[1]:>11.0f}"
        print(f"{name:<44}{more}{len(below):>7}{sum(pss for pss, _ in below):>8.0f}", flush=True)
        self._before = now


def rank(number: int, port: int, together: Any) -> None:
    """One of them."""
    stages = Stages(number == 0)

    def all_did(name: str) -> None:
        together.wait()
        stages.show(name)
        together.wait()

    all_did("Python")
    import torch
    import torch.distributed as dist

    all_did("torch")
    from engine.system.quick_imports import import_diffusers

    import_diffusers()
    import engine.follow  # noqa: F401
    from engine.system.device import open_device

    all_did("diffusers, transformers, av, the engine")
    cuda = torch.cuda.device_count() >= RANKS
    device = open_device(f"cuda:{number}" if cuda else "cpu", sharers=RANKS)
    rows = torch.randn(1024, 512, device=device, requires_grad=True)
    if cuda:
        torch.cuda.set_device(device)
        all_did("CUDA's context, cuBLAS")
        torch.conv3d(torch.randn(1, 16, 8, 64, 64, device=device), torch.randn(32, 16, 3, 3, 3, device=device))
        all_did("cuDNN")
    store = dist.TCPStore("127.0.0.1", port, RANKS, is_master=number == 0)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=number, world_size=RANKS)
    mine = torch.zeros(2**22, device=device)
    dist.all_gather([torch.empty_like(mine) for _ in range(RANKS)], mine)
    all_did("gloo, NCCL and an exchange" if cuda else "gloo and an exchange")
    import torch._inductor.compile_fx

    all_did("the compiler")
    if cuda:
        torch.compile(lambda x: torch.nn.functional.gelu(x @ x.mT).float().pow(2).sum())(rows).backward()
        all_did("a function compiled, its processes")
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=int, metavar="PID")
    args = parser.parse_args()
    if args.of is not None:
        of_training(args.of)
        return 0
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores; MiB more of the first of {RANKS} ranks")
    print(f"{'':<44}{'PSS':>8}{'anonymous':>11}{'below':>7}{'PSS':>8}", flush=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("spawn")
    together = context.Barrier(RANKS)
    ranks = [context.Process(target=rank, args=(number, port, together)) for number in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    for name in ("engine.data.decode_worker", "torch.distributed.run"):
        code = f"import {name}; from benchmarks.rank_memory import Stages; Stages(True).show('a process of {name}')"
        subprocess.run([sys.executable, "-c", code], check=True)
    return max(process.exitcode or 0 for process in ranks)


if __name__ == "__main__":
    raise SystemExit(main())
