"""Triton's kernels without a card: run in its interpreter, and assembled for each generation of cards."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.helpers import ROOT

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}  # compute capability -> KiB of shared memory a program may have
ALIGNED = [["tt.divisibility", 16]]


def interpreted(code: str, given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `code` saves in its second argument, of the cases saved in its first. Triton asks when it is imported
    whether to interpret, so the kernels run in a process of their own: all cases at once."""
    torch.save(given, folder / "in.pt")
    said = subprocess.run(
        [sys.executable, "-c", code, str(folder / "in.pt"), str(folder / "out.pt")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert said.returncode == 0, said.stderr
    out: dict[str, Any] = torch.load(folder / "out.pt")
    return out


def assembled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, *, whole: str, **options: int
) -> Any:
    """A kernel for such a card. `whole` names the numbers that are multiples of 16, as addresses are."""
    from triton import compile as assemble
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    assert set(names) == set(types) | set(constants)
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): ALIGNED for i, n in enumerate(names) if types.get(n, "").startswith("*") or n in whole.split()},
    )
    kept = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        return assemble(source, target=GPUTarget("cuda", capability, 32), options=options)
    finally:  # LLVM takes signals for itself, and what a later test starts would no longer ignore them
        for number, handler in kept.items():
            if handler not in (None, signal.SIG_DFL):
                signal.signal(number, handler)
