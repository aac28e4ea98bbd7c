"""doctor: what this machine has and lacks for training, one line each, with the fix."""

import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from daemon.errors import DaemonError
from daemon.wire.blocking import daemon_status
from daemon.wire.find import find, why_untrusted
from presets.machine.machine import FLASH4_CARDS, Machine, read_machine
from presets.machine.torch_build import REQUIREMENT, command, requirement, served
from wanlora_tui.commands.common import daemon_dir
from wanlora_tui.output.formatting import size
from wanlora_tui.terminal.streams import can_draw, is_dumb, terminal_width

GIB = 2**30
TORCH_SECONDS = 120.0  # importing torch from a cold network disk can take a minute
LEAST_RAM = 32 * GIB  # both experts in float8, 28 GiB, have to fit somewhere
LEAST_DISK = 12 * GIB  # checkpoints, LoRA files and previews of a run; what the model takes is told with it
LEAST_COLUMNS, LEAST_ROWS = 80, 24
FLASH4 = ("flash-attn-4>=4.0.0b36,<5", "nvidia-cutlass-dsl[cu13]>=4.8,<5")  # the extra flash4 of pyproject.toml
FLASH4_CUDA = 13  # what it is built for

Level = Literal["ok", "warn", "fail"]


class Line(NamedTuple):
    level: Level
    subject: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return self.broken(0)

    def broken(self, width: int) -> str:
        """The text and its fix in a column of their own, broken at words where they are wider than a terminal of
        `width`; 0 breaks nothing."""
        head = f"{self.level:<4}  {self.subject:<12} "
        parts = [
            (head, " " * len(head), self.text),
            *([(" " * len(head) + "-> ", " " * (len(head) + 3), self.fix)] if self.fix else []),
        ]
        if not width:
            return "\n".join(first + text for first, _, text in parts)
        return "\n".join(
            textwrap.fill(
                text,
                width,
                initial_indent=first,
                subsequent_indent=rest,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for first, rest, text in parts
        )


def doctor(args: Namespace) -> int:
    """Print every line; 1 when something fails, 0 with warnings."""
    failed, width = False, terminal_width(sys.stdout)
    for line in diagnose(daemon_dir(args)):
        print(line.broken(width), flush=True)
        failed |= line.level == "fail"
    return 1 if failed else 0


def diagnose(folder: Path | None) -> Iterator[Line]:
    """Every check, cheapest first; each is told as soon as it is known."""
    yield _python()
    machine = read_machine(Path.cwd())
    yield from _gpus(machine)
    yield from _attention(machine)
    yield _ram(machine)
    yield _disk(machine)
    try:
        yield _runtime(folder)
        yield _daemon(folder)
    except DaemonError as e:  # the state folder is another user's
        yield Line("fail", "Daemon", f"{e.where}: {e.what}" if e.where else e.what, e.fix)
    yield _terminal()
    yield _colour()
    yield _pictures()
    yield _codecs()
    yield _model()
    yield _torch(machine)


def _python() -> Line:
    text = f"{sys.version.split()[0]} ({sys.executable})"
    return (
        Line("ok", "Python", text)
        if sys.version_info >= (3, 11)
        else Line("fail", "Python", text, "Install Python 3.11 or newer and set up again")
    )


def _gpus(machine: Machine) -> Iterator[Line]:
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
            f"{gpu.index}: {gpu.name}, {size(gpu.vram_free)} of {size(gpu.vram_total)} free, driver {gpu.driver},"
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


def _attention(machine: Machine) -> Iterator[Line]:
    if not any(gpu.capability[0] in FLASH4_CARDS for gpu in machine.gpus):
        return
    try:
        yield Line("ok", "Attention", f"flash-attn-4 {version('flash-attn-4')}, where it is the fastest here")
    except PackageNotFoundError:
        text = "torch's kernels and our own; the package flash-attn-4 has faster ones for this card"
        gpu = machine.gpus[0]
        if max(served(gpu.driver), gpu.cuda) < FLASH4_CUDA:
            yield Line("ok", "Attention", f"{text}, with a driver that serves CUDA {FLASH4_CUDA}")
        else:
            yield Line("ok", "Attention", text, f"{sys.executable} -m pip install {shlex.join(FLASH4)}")


def _ram(machine: Machine) -> Line:
    text = f"{size(machine.ram_free)} of {size(machine.ram_total)} free, {machine.cores} cores"
    if machine.ram_free >= LEAST_RAM:
        return Line("ok", "RAM", text)
    return Line(
        "warn",
        "RAM",
        text,
        f"The 14B model wants {size(LEAST_RAM)} free, to keep both experts at hand; the demo does not",
    )


def _disk(machine: Machine) -> Line:
    text = f"{size(machine.disk_free)} free at {machine.disk_path}"
    if machine.disk_free < GIB:
        return Line("fail", "Disk", text, "Free some space, or work in a folder on another disk")
    return (
        Line("ok", "Disk", text)
        if machine.disk_free >= LEAST_DISK
        else Line(
            "warn", "Disk", text, f"A run wants about {size(LEAST_DISK)} for its checkpoints, LoRA files and previews"
        )
    )


def _runtime(folder: Path | None) -> Line:
    where = find(folder).where
    if reason := why_untrusted(where.runtime):
        return Line(
            "warn",
            "Runtime dir",
            f"{reason}; the daemon keeps its sockets elsewhere",
            f"Have {where.runtime} removed, or correct its owner and permissions",
        )
    at = next(p for p in (where.runtime, *where.runtime.parents) if p.exists())
    if not os.access(at, os.W_OK):
        return Line(
            "warn",
            "Runtime dir",
            f"{where.runtime} cannot be written; the daemon keeps its sockets elsewhere",
            "Correct the permissions of that folder, or name another with --dir",
        )
    if where.runtime.exists() and where.runtime.stat().st_mode & 0o077:
        return Line("warn", "Runtime dir", f"{where.runtime} is open to other users", f"chmod 700 {where.runtime}")
    return Line("ok", "Runtime dir", str(where.runtime))


def _daemon(folder: Path | None) -> Line:
    status = daemon_status(folder)
    if status.problem is None:
        return Line("ok", "Daemon", f"answers (pid {status.pid})")
    if status.state == "none":
        return Line("ok", "Daemon", "none runs; it starts by itself with the first job")
    return Line(
        "warn" if status.state == "starting" else "fail",
        "Daemon",
        status.problem.what,
        status.problem.fix or "wanlora daemon stop, then start it again",
    )


def _terminal() -> Line:
    if not sys.stdout.isatty():
        return Line(
            "warn",
            "Terminal",
            "the output is no terminal, so its size and colours are unknown",
            "Run doctor on the terminal that will show the dashboard",
        )
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    text = f"{columns}x{rows}, TERM={os.environ.get('TERM', '')}" + (", in tmux" if "TMUX" in os.environ else "")
    if is_dumb():
        return Line("fail", "Terminal", text, "Set TERM, e.g. TERM=xterm-256color; or use wanlora watch --plain")
    if not columns or not rows:
        return Line(
            "warn",
            "Terminal",
            f"{text}: it tells no size, so 80x24 is drawn",
            "Tell it, e.g.: stty columns 120 rows 40",
        )
    return (
        Line("ok", "Terminal", text)
        if columns >= LEAST_COLUMNS and rows >= LEAST_ROWS
        else Line("warn", "Terminal", text, f"Make it {LEAST_COLUMNS}x{LEAST_ROWS} or larger")
    )


def _colour() -> Line:
    if os.environ.get("NO_COLOR"):
        return Line("ok", "Colour", "off (NO_COLOR); every state also has a word")
    if os.environ.get("COLORTERM", "") in ("truecolor", "24bit"):
        return Line("ok", "Colour", "16 million colours")
    return Line(
        "ok",
        "Colour",
        "the terminal names no 24-bit colour; previews are drawn in fewer colours (COLORTERM=truecolor if yours can"
        " do it)",
    )


def _pictures() -> Line:
    if not can_draw():
        return Line("ok", "Pictures", "drawn on terminals only; what this one can do is asked there")
    from wanlora_tui.terminal.conversation import Conversation

    with Conversation(sys.stdin.fileno(), sys.stdout.fileno()) as terminal:
        terminal.ask()
        terminal.listen()
        return Line("ok", "Pictures", f"previews are drawn with {terminal.pictures}")


def _codecs() -> Line:
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


def _model() -> Line:
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
            f"to be downloaded: {what}; {size(fetching.free)} are free in {fetching.cache}",
            f"Free {size(fetching.need + RESERVE - fetching.free)} there, or set HF_HOME to a folder on another disk",
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


def _torch(machine: Machine) -> Line:
    """torch itself is asked in another process: importing it takes seconds and a broken CUDA can end the process."""
    build, wrong = machine.torch, machine.torch_misfit
    install = command(requirement(machine.gpus[0].driver if machine.gpus else "")[0] or REQUIREMENT)
    if build is None:
        return Line("fail", "torch", "not installed", install)
    try:
        asked = subprocess.run(
            [sys.executable, "-c", QUESTION], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
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
