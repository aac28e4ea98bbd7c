"""Which torch fits which NVIDIA driver. A build of torch brings its own CUDA, and a driver serves the CUDA versions of
its time. And which cards there is a package of faster kernels for.

`python -m presets.machine.torch_build` prints what `make setup` asks of pip beyond pyproject.toml, with `--kernels` the
packages of kernels that this machine's cards have a use for, with `--installed` what is wrong with the torch that is
there. It runs before anything is installed, so this module needs the standard
library alone.
"""

import argparse
import platform
import re
import shlex
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

REQUIREMENT = "torch>=2.10,<2.14"  # as in pyproject.toml
# The wheels of PyPI: 2.10 for CUDA 12.8 on x86_64 and without CUDA elsewhere, from 2.11 on for CUDA 13 everywhere.
REQUIREMENT_CUDA12 = "torch>=2.10,<2.11"
CUDA12_PROCESSORS = ("x86_64",)
# CUDA's major version -> the first driver that serves all its minor versions. Source: NVIDIA, CUDA Compatibility,
# "Minor Version Compatibility".
FIRST_DRIVER = {12: (525, 60), 13: (580,)}
OLDEST, NEWEST = min(FIRST_DRIVER), max(FIRST_DRIVER)
# The package flash-attn-4 has both directions of attention for cards of these major compute capabilities: Hopper, and
# Blackwell of data centres. It is built for CUDA 13.
FLASH4_CARDS, FLASH4_CUDA = (9, 10), 13
FLASH4 = ("flash-attn-4>=4.0.0b36,<5", "nvidia-cutlass-dsl[cu13]>=4.8,<5")  # the extra flash4 of pyproject.toml
# The open backward of attention in nvidia-cudnn-frontend: the cards that its own kernels accept. It wants CUDA 13 too.
CUDNN_OPEN_CARDS = ((8, 0), (12, 0), (12, 1))
CUDNN_OPEN = ("nvidia-cudnn-frontend>=1.32,<2", "nvidia-cutlass-dsl[cu13]>=4.8,<5")  # the extra cudnn-open
SMI_SECONDS = 30.0  # a driver in trouble takes its time
PROC_DRIVER = Path("/proc/driver/nvidia/version")


class Build(NamedTuple):
    """The installed torch, as its own version.py says."""

    version: str  # "2.13.0+cpu"
    cuda: str = ""  # "13.0"; "" for a build without CUDA
    other: str = ""  # what a build without CUDA is for: "ROCm"

    def __str__(self) -> str:
        if self.cuda:
            return f"torch {self.version} is built for CUDA {self.cuda}"
        return f"torch {self.version} is a build {f'for {self.other}, ' if self.other else ''}without CUDA"


class Misfit(NamedTuple):
    """Why a torch cannot use an NVIDIA GPU, and what repairs it: phrases without a full stop."""

    message: str
    fix: str


def installed_build() -> Build | None:
    """The torch of this Python, without importing it, which takes seconds. None where there is none that tells."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    try:
        text = (Path(found.origin).parent / "version.py").read_text("utf-8")
    except OSError:
        return None
    said = dict(re.findall(r"^(\w+)\b[^=\n]*=\s*['\"]([^'\"]*)", text, re.MULTILINE))
    if "__version__" not in said:
        return None
    return Build(
        said["__version__"],
        said.get("cuda", ""),
        "ROCm" if said.get("hip") else "Intel GPUs" if said.get("xpu") else "",
    )


def misfit(build: Build, driver: str, *, cuda: int = 0) -> Misfit | None:
    """Why this torch cannot use a GPU under this driver; None where they fit or too little is known. `cuda` is the
    major version of CUDA that the driver's library says it serves (0: unknown): more than the driver's own where
    NVIDIA's package cuda-compat is in use."""
    if build.cuda:
        major = int(build.cuda.partition(".")[0])
        if not _numbers(driver) or major <= max(served(driver), cuda) or (major > NEWEST and not cuda):
            return None
        message = f"{build}, which NVIDIA driver {driver} does not serve" + (
            f": it wants {_first(major)} or newer" if major in FIRST_DRIVER else ""
        )
    else:
        message = str(build)
    wanted, problem = requirement(driver)
    if problem:
        return Misfit(message if build.cuda and served(driver) < OLDEST else f"{message}; {problem}", UPDATE)
    return Misfit(message, f"Install one that fits{f' driver {driver}' if driver else ''}: {command(wanted)}")


def requirement(driver: str, processor: str = "") -> tuple[str, str]:
    """(what to ask of pip so that torch can use the GPU under this driver, "") or ("", why there is none). `driver` is
    "" without one."""
    processor = processor or platform.machine()
    if not _numbers(driver) or served(driver) >= NEWEST:
        return REQUIREMENT, ""
    if served(driver) < OLDEST:
        return (
            "",
            f"NVIDIA driver {driver} is too old for every torch that wanlora can use: the least is {_first(OLDEST)}",
        )
    if processor not in CUDA12_PROCESSORS:
        return (
            "",
            (
                f"for {processor} no torch that wanlora can use runs with NVIDIA driver {driver}: the least is"
                f" {_first(NEWEST)}"
            ),
        )
    return REQUIREMENT_CUDA12, ""


def command(wanted: str) -> str:
    """The shell line that installs such a torch. What is there goes first: pip takes a build without CUDA, or for
    another, for the same version."""
    pip = f"{shlex.quote(sys.executable)} -m pip"
    return f"{pip} uninstall -y torch && {pip} install {shlex.quote(wanted)}"


def read_driver() -> str:
    """The version of the NVIDIA driver, from its own tool or from the kernel; "" without one."""
    for ask in (partial(_asked_smi, "driver_version"), lambda: PROC_DRIVER.read_text("ascii", "replace")):
        try:
            found = re.search(r"\b\d{3,}\.\d+(\.\d+)*", ask())
        except (OSError, subprocess.SubprocessError):
            continue
        if found:
            return found[0]
    return ""


def kernels(driver: str) -> tuple[str, ...]:
    """What to ask of pip for the faster kernels that this machine's cards can use; nothing where there are none."""
    if served(driver) < FLASH4_CUDA:
        return ()
    try:
        found = re.findall(r"^\s*(\d+)\.\d+\s*$", _asked_smi("compute_cap"), re.MULTILINE)
    except (OSError, subprocess.SubprocessError):
        return ()
    return FLASH4 if any(int(major) in FLASH4_CARDS for major in found) else ()


def _asked_smi(what: str) -> str:
    return subprocess.run(
        ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SMI_SECONDS,
        check=True,
    ).stdout


def served(driver: str) -> int:
    """The newest CUDA that a driver is known to serve, by major version; 0 for a driver older than all of
    FIRST_DRIVER."""
    return max((cuda for cuda, first in FIRST_DRIVER.items() if _numbers(driver) >= first), default=0)


def _numbers(version: str) -> tuple[int, ...]:
    """`550.54.14` -> (550, 54, 14); () for what is no version."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _first(cuda: int) -> str:
    return ".".join(map(str, FIRST_DRIVER[cuda]))


UPDATE = f"Update the NVIDIA driver to {_first(NEWEST)} or newer, or use a machine that has it"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m presets.machine.torch_build",
        description="What to ask of pip so that torch fits this machine's NVIDIA driver.",
    )
    parser.add_argument(
        "--installed", action="store_true", help="say instead what is wrong with the torch that is installed"
    )
    parser.add_argument("--kernels", action="store_true", help="packages of faster kernels for this machine's cards")
    args = parser.parse_args(argv)
    driver = read_driver()
    if args.kernels:
        print(*kernels(driver), sep="\n")
        return 0
    if args.installed:
        build = installed_build()
        if driver and build and (wrong := misfit(build, driver)):
            print(f"{wrong.message}. Only the demo can train here like this, on the CPU. {wrong.fix}", file=sys.stderr)
        return 0
    wanted, problem = requirement(driver)
    if problem:
        print(f"{problem}. {UPDATE}.", file=sys.stderr)
    elif wanted != REQUIREMENT:
        print(f"NVIDIA driver {driver} serves CUDA {served(driver)}: installing {wanted}", file=sys.stderr)
        print(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
