"""What doctor looks at of the machine: Python, GPUs, memory, disk, video, model files, torch. Each check gives a line
or several; how they are printed, and what it looks at of the daemon and the terminal, is in commands.doctor."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from presets.job.gpu_shares import RECORDED
from presets.machine.machine import WSL, Machine
from presets.machine.torch_build import (
    CUDNN_OPEN,
    CUDNN_OPEN_CARDS,
    FLASH4,
    FLASH4_CARDS,
    FLASH4_CUDA,
    REQUIREMENT,
    command,
    requirement,
    served,
)
from presets.text import human

GIB = 2**30
TORCH_SECONDS = 120.0  # importing torch from a cold network disk can take a minute
LEAST_RAM = 32 * GIB  # both experts in float8, 28 GiB, have to fit somewhere
LEAST_DISK = 12 * GIB  # checkpoints, LoRA files and previews of a run; what the model takes stands with it
COMPILER = "nvidia-cutlass-dsl-libs-cu13"  # of the kernels in packages

Level = Literal["ok", "warn", "fail"]


class Line(NamedTuple):
    """What one check found."""

    level: Level
    subject: str
    text: str
    fix: str = ""


def python() -> Line:
    text = f"{sys.version.split()[0]} ({sys.executable})"
    return (
        Line("ok", "Python", text)
        if sys.version_info >= (3, 11)
        else Line("fail", "Python", text, "Install Python 3.11 or newer and set up again")
    )


def gpus(machine: Machine) -> Iterator[Line]:
    if not machine.gpus:
        yield Line(
            "warn",
            "GPU",
            f"none: {machine.gpu_problem or 'no NVIDIA GPU found'}",
            "Without one only the demo can train here; run wanlora on the machine that has the GPU",
        )
        return
    if machine.visible is not None:
        yield Line("ok", "GPU", f"job.gpus counts within CUDA_VISIBLE_DEVICES={machine.visible}")
    for gpu in machine.gpus:
        text = (
            f"{gpu.index}: {gpu.name}, {human(gpu.vram_free)} of {human(gpu.vram_total)} free, driver {gpu.driver},"
            f" compute {gpu.capability[0]}.{gpu.capability[1]}"
        )
        if gpu.error:
            yield Line(
                "warn",
                "GPU",
                f"{gpu.index}: {gpu.name or 'unknown'}: {gpu.error}",
                "Look at it with nvidia-smi; leave it out of job.gpus meanwhile",
            )
        elif gpu.mig and machine.visible is None:
            yield Line(
                "warn",
                "GPU",
                f"{text}, in MIG mode",
                "This is its first slice. For another set CUDA_VISIBLE_DEVICES to its UUID (nvidia-smi -L), or turn"
                " MIG off",
            )
        elif gpu.vram_total and gpu.vram_free < gpu.vram_total // 2:
            yield Line("warn", "GPU", text, "Another program holds much of it: see nvidia-smi")
        else:
            yield Line("ok", "GPU", text)


def attention(machine: Machine) -> Iterator[Line]:
    capabilities = {gpu.capability for gpu in machine.gpus}
    if any(capability[0] in FLASH4_CARDS for capability in capabilities):
        yield _kernels(machine, "flash-attn-4", FLASH4, "has faster ones for this card")
    if capabilities & set(CUDNN_OPEN_CARDS):
        offer = "has another backward for this card, not measured by us, and used where it is the fastest"
        yield _kernels(machine, "nvidia-cudnn-frontend", CUDNN_OPEN, offer)


def _kernels(machine: Machine, package: str, requirements: tuple[str, ...], offer: str) -> Line:
    try:
        found = [version(name) for name in (package, COMPILER)]
        return Line("ok", "Attention", f"{package} {found[0]}, where it is the fastest here")
    except PackageNotFoundError as e:
        text = f"torch's kernels and our own; the package {package} {offer}"
        if e.name != package:
            text = f"torch's kernels and our own; {package} is here, but not {e.name}, which it needs"
        gpu = machine.gpus[0]
        if max(served(gpu.driver), gpu.cuda) < FLASH4_CUDA:
            return Line("ok", "Attention", f"{text}, with a driver that serves CUDA {FLASH4_CUDA}")
        return Line("ok", "Attention", text, f"{sys.executable} -m pip install {shlex.join(requirements)}")


def ram(machine: Machine) -> Line:
    text = f"{human(machine.ram_free)} of {human(machine.ram_total)} free, {machine.cores} cores"
    if machine.ram_free >= LEAST_RAM:
        return Line("ok", "RAM", text)
    return Line(
        "warn",
        "RAM",
        text,
        f"The 14B model wants {human(LEAST_RAM)} free, to keep both experts at hand; the demo does not",
    )


def wsl(machine: Machine) -> Iterator[Line]:
    if machine.wsl:
        yield Line(
            "warn",
            "WSL2",
            f"{WSL}: the frozen weights then lie in plain memory, and copies to the GPU take longer",
            "A run tries how much it gets and plans for that; memory= in .wslconfig gives WSL2 more",
        )


def disk(machine: Machine) -> Line:
    text = f"{human(machine.disk_free)} free at {machine.disk_path}"
    if machine.disk_free < GIB:
        return Line("fail", "Disk", text, "Free some space, or work in a folder on another disk")
    return (
        Line("ok", "Disk", text)
        if machine.disk_free >= LEAST_DISK
        else Line(
            "warn", "Disk", text, f"A run wants about {human(LEAST_DISK)} for its checkpoints, LoRA files and previews"
        )
    )


def codecs() -> Line:
    try:
        import av
    except ImportError as e:
        return Line(
            "fail", "Video", f"PyAV cannot be imported: {e}", f"{sys.executable} -m pip install --force-reinstall av"
        )
    missing = sorted({"libx264"} - av.codecs_available)
    if missing:
        return Line(
            "fail",
            "Video",
            f"PyAV {av.__version__} has no {', '.join(missing)} encoder",
            "Install the PyAV wheel from PyPI instead of a system build",
        )
    return Line(
        "ok",
        "Video",
        f"PyAV {av.__version__} reads clips and writes H.264; no ffmpeg program is needed"
        + (f" (there is one: {shutil.which('ffmpeg')})" if shutil.which("ffmpeg") else ""),
    )


def model() -> Line:
    from presets.base.composition import NamedBase
    from presets.base.fetch_plan import RESERVE, fetching_of
    from presets.base.model_facts import read_model
    from presets.job.schema import ModelPanel

    named = NamedBase(path=ModelPanel().path)
    facts = read_model(named, Path.cwd())
    errors = [p for p in facts.problems if p.severity == "error"]
    if errors:
        return Line("fail", "Model files", f"{named.path}: {errors[0].message}", errors[0].fix)
    if facts.local:
        elsewhere = sorted({source for source in facts.sources.values() if source != named.path})
        return Line(
            "ok", "Model files", f"{named.path} is here" + (f", with {' and '.join(elsewhere)}" if elsewhere else "")
        )
    fetching = fetching_of(named, Path.cwd())
    what = (fetching.text if fetching is not None else "") or ", ".join(facts.absent)
    if fetching is not None and fetching.problems:
        return Line("warn", "Model files", f"{what}: {fetching.problems[0].message}", fetching.problems[0].fix)
    if fetching is not None and fetching.need + RESERVE > fetching.free:
        return Line(
            "warn",
            "Model files",
            f"to be downloaded: {what}; {human(fetching.free)} are free in {fetching.cache}",
            f"Free {human(fetching.need + RESERVE - fetching.free)} there, or set HF_HOME to a folder on another disk",
        )
    unknown = (
        f"; the sizes are not known, because {fetching.unknown}" if fetching is not None and fetching.unknown else ""
    )
    return Line(
        "warn",
        "Model files",
        f"not in the Hugging Face cache: {what}{unknown}",
        "The first real job downloads it; or name a folder in model.path",
    )


QUESTION = """
import torch
words = ""
if not torch.cuda.is_available():
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as e:
        words = str(e).splitlines()[0]
print(torch.version.cuda or "", torch.cuda.is_available(), words, sep="|")
"""


def link(machine: Machine) -> Iterator[Line]:
    """How fast GPUs copy to each other, which experts that train apart do without. Measured in another process, as
    torch is asked."""
    good = [gpu for gpu in machine.gpus if not gpu.error]
    if len(good) < 2:
        if good:
            yield Line("ok", "Link", "not measured: it is the way between two GPUs, and one is here")
        return
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "engine.memory.measure_link"],
            cwd="/",  # no folder of the user's is the engine
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TORCH_SECONDS,
            check=True,
        )
        yield from link_lines(json.loads(asked.stdout.strip().rpartition("\n")[2] or "[]"))
    except subprocess.TimeoutExpired:
        yield Line("warn", "Link", f"not measured: it took more than {TORCH_SECONDS:.0f} s", "Look at nvidia-smi")
    except subprocess.CalledProcessError as e:
        last = str(e.stderr).strip().rpartition("\n")[2]
        yield Line("warn", "Link", f"not measured: {last}", "Look at what doctor says of torch")


def many_gpus(machine: Machine) -> Iterator[Line]:
    """That more GPUs than were measured together may train one job."""
    good = sum(not gpu.error for gpu in machine.gpus)
    if good > RECORDED:
        text = f"a job may name all {good}; more than {RECORDED} in one job were shown by processes on a CPU, and not"
        yield Line("ok", "Many GPUs", f"{text} measured on cards yet: wanlora check says how to be sure")


def link_lines(pairs: list[dict[str, float]]) -> Iterator[Line]:
    """What was measured, each GPU to the next."""
    if not pairs:
        yield Line("warn", "Link", "not measured: torch sees fewer than two GPUs", "Look at what doctor says of torch")
        return
    slowest = min(pairs, key=lambda pair: pair["gbps"])
    way = "directly" if all(pair["direct"] for pair in pairs) else "through the host's memory"
    yield Line(
        "ok",
        "Link",
        f"{slowest['gbps']:.0f} GB/s one way between {len(pairs)} GPUs, {way}; the slowest is"
        f" {slowest['from']:.0f} to {slowest['to']:.0f}",
    )


def torch(machine: Machine) -> Line:
    """torch itself is asked in another process: importing it takes seconds and a broken CUDA can end the process."""
    build, wrong = machine.torch, machine.torch_misfit
    install = command(requirement(machine.gpus[0].driver if machine.gpus else "")[0] or REQUIREMENT)
    if build is None:
        return Line("fail", "torch", "not installed", install)
    try:
        asked = subprocess.run(
            [sys.executable, "-c", QUESTION],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TORCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Line(
            "fail",
            "torch",
            f"{build.version} did not import within {TORCH_SECONDS:.0f} s",
            "Is the disk with the environment very slow, or is the driver hanging (nvidia-smi)?",
        )
    if asked.returncode:
        return Line(
            "fail",
            "torch",
            f"{build.version} cannot be imported: {asked.stderr.strip().rpartition(chr(10))[2]}",
            install,
        )
    cuda, available, words = asked.stdout.strip().rpartition("\n")[2].split("|", 2)
    if available == "True":
        return Line("ok", "torch", f"{build.version}, CUDA {cuda}")
    if wrong is not None:
        return Line("fail", "torch", f"{wrong.message}, so it does not see the GPU", wrong.fix)
    if machine.gpus:
        return Line(
            "fail",
            "torch",
            f"{build}, and does not see the GPU: {words.rstrip('.') or 'it does not say why'}",
            "Look at nvidia-smi, at CUDA_VISIBLE_DEVICES, and in a container at how it was started: docker run"
            " --gpus all",
        )
    return Line("ok", "torch", f"{build.version}, without {'a GPU' if build.cuda else 'CUDA'}; enough for the demo")
