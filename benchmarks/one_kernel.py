"""A job with another attention than would be chosen: what rounding alone makes of it on one GPU.

    python -m benchmarks.one_kernel flash JOB.toml --out DIR
    python -m benchmarks.one_kernel reversed JOB.toml --out DIR      (the CPU's, which adds up the keys from behind)

`python -m benchmarks.gpus_apart --kernel NAME` runs it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.wan import attention

REVERSED = "reversed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    forward = [kernel for kernel in attention.KERNELS if kernel not in attention.BACKWARD_ONLY]
    parser.add_argument("kernel", choices=[*forward, REVERSED])
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    from engine.run import run_job
    from engine.training import prepare

    if args.kernel == REVERSED:
        vars(attention)["forward"] = from_behind(attention.forward)
        vars(attention)["backward"] = from_behind_back(attention.backward)
    else:
        vars(prepare)["kernels_of"] = only(args.kernel)
    return run_job(args.job, args.out, resume=False)


def only(kernel: str) -> Callable[..., tuple[attention.Attention, str]]:
    """In place of the choice of the fastest kernel."""

    def kernels_of(job: Any, *_: object, **__: object) -> tuple[attention.Attention, str]:
        return attention.Attention(kernel, kernel, job.training.deterministic, kernel, kernel), "asked for"

    return kernels_of


def from_behind(forward: Callable[..., Any]) -> Callable[..., Any]:
    def reversed_forward(kernel: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return forward(kernel, q, k.flip(2), v.flip(2))

    return reversed_forward


def from_behind_back(backward: Callable[..., attention.Grads]) -> Callable[..., attention.Grads]:
    def reversed_backward(
        kernel: str, grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **how: Any
    ) -> attention.Grads:
        dq, dk, dv = backward(kernel, grad, q, k.flip(2), v.flip(2), *rest, **how)
        return dq, dk.flip(2), dv.flip(2)

    return reversed_backward


if __name__ == "__main__":
    raise SystemExit(main())
