"""A job on one GPU and on several of one host: the same LoRAs, and how much sooner.

    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --steps 20 --json apart.json
    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --on-cpu      (a job on the tiny base, gloo in NCCL's place)
    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --per-clip 2 --steps 20 --json shared.json
    python -m benchmarks.gpus_apart --tiny DIR --gpus 0,1 --per-clip 2      (writes a job and its base into DIR; CPU)
    python -m benchmarks.gpus_apart --real DIR --frames 81x480x832 --gpus 0,1 --per-clip 2 --steps 6 --kernel flash
    (writes a job of the real shape, low noise alone, and 60 GB of random weights into DIR)

For more than two cards, first raise RECORDED in presets/job/gpu_shares.py, which refuses what was never run, and
RECORDED_PER_CLIP for --per-clip: they stay raised with the results of this.

Where both experts train and the number of GPUs is even, they train apart; else the GPUs share the micro-batches of each
step, so training.gradient_accumulation has to be a multiple of their number. With --per-clip they share clips: those
LoRAs agree within rounding and not to the bit: printed are |difference| / |B| over all B of a file, which begin as
zero, and the largest difference of a step's loss. --kernel runs one GPU once more with another attention
(benchmarks.one_kernel), and prints the ratio of the one difference to the other: up to 1, two GPUs are no further from
one than one is from itself. A block that keeps its graph is compiled otherwise than one that is recomputed, and two
GPUs have room to keep more: --streamed keeps none in any run, so that this is no part of the difference. The job's own
previews are made. The runs follow each other in one call, the one on the first GPU alone before and after, so that a
machine that slows down shows itself (--once: before alone). Seconds are those from the attempt's start to its end, by
its events, with and without loading. How much faster it is goes by the median step of the later half: the first ones
compile. GPUs that share clips encode those of as many steps at once: of each step of such a round the median is taken,
then their mean, for all runs of the same steps. Host memory is that of all processes of a run after its first step,
what they share counted once (PSS); the launcher that torch starts several with is among them.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel, MultistagePanel
from presets.job.toml_file import absolute_paths, load_job, save_job, with_value
from presets.runs.events import Event, read_events

TINY_STEPS = 4
OTHERWISE = "one with another attention"
LOOK_SECONDS = 0.2  # between two looks at a run's events


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, nargs="?")
    parser.add_argument("--gpus", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--per-clip", type=int, default=1, help="GPUs that share each clip")
    parser.add_argument("--on-cpu", action="store_true", help="show no GPU to the trainers")
    parser.add_argument("--tiny", type=Path, metavar="DIR", help="on the CPU, a job of the demo's clips and base there")
    parser.add_argument("--real", type=Path, metavar="DIR", help="a job of the real shape there")
    parser.add_argument("--frames", default="41x512x512", metavar="FxHxW", help="of the clips of --real")
    parser.add_argument("--once", action="store_true", help="one GPU before, not after as well")
    parser.add_argument("--kernel", metavar="NAME", help="also one GPU with this attention: flash; on a CPU reversed")
    parser.add_argument("--streamed", action="store_true", help="no block stays on the GPU, in any run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if sum(given is not None for given in (args.job, args.tiny, args.real)) != 1:
        parser.error("name a job, --tiny DIR or --real DIR")
    if args.tiny is not None:
        args.job, args.on_cpu, args.steps = _tiny(args.tiny), True, min(args.steps, TINY_STEPS)
    if args.real is not None:
        args.job = _real(args.real, args.frames)
    job = with_value(absolute_paths(load_job(args.job), args.job.resolve().parent), "training.steps", args.steps)
    if args.streamed:
        job = with_value(job, "model.layer_offloading", True)
    alone, shared = (args.gpus[:1], 1), (args.gpus, args.per_clip)
    asked = {"one": alone, "several": shared}
    if not args.once:
        asked["one again"] = alone
    if args.kernel:
        asked[OTHERWISE] = alone
    with tempfile.TemporaryDirectory(prefix="gpus-apart") as folder:
        runs, memory = dict[str, Path](), dict[str, float]()
        for name, (gpus, per_clip) in asked.items():
            command = ["benchmarks.one_kernel", args.kernel] if name == OTHERWISE else ["engine"]
            runs[name], memory[name] = _run(job, gpus, per_clip, Path(folder) / name, command, on_cpu=args.on_cpu)
        losses = {name: _losses(run) for name, run in runs.items()}
        apart = {name: _difference(runs["one"], run) for name, run in runs.items() if name != "one"}
        found: dict[str, Any] = {"card": _card(), "gpus": len(args.gpus), "steps": args.steps}
        for name, run in runs.items():
            found |= {f"{name}: {part}": seconds for part, seconds in _seconds(run, args.per_clip).items()}
            found[f"{name}: host memory, GiB"] = memory[name]
    for part in ("training, s", "a step, s"):
        one = min(found[f"{name}: {part}"] for name in asked if name not in ("several", OTHERWISE))
        found[f"times as fast: {part.removesuffix(', s')}"] = one / found[f"several: {part}"]
    found["times the host memory"] = memory["several"] / memory["one"]
    off = {name: max(abs(a - b) / a for a, b in zip(losses["one"], losses[name], strict=True)) for name in apart}
    found |= {f"difference of LoRAs from one GPU's: {name}": value for name, value in apart.items()}
    found |= {f"largest relative difference of a loss: {name}": value for name, value in off.items()}
    if args.kernel:
        found["as far apart as one GPU from itself: LoRAs"] = _ratio(apart["several"], apart[OTHERWISE])
        found["as far apart as one GPU from itself: losses"] = _ratio(off["several"], off[OTHERWISE])
    for name, value in found.items():
        print(f"{name:<44}{value:>12.3g}" if isinstance(value, float) else f"{name:<44}{value!s:>12}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0 if apart.get("one again", 0) == 0 and (apart["several"] == 0 or args.per_clip > 1) else 1


def _tiny(folder: Path) -> Path:
    """A job of a few clips and the tiny base."""
    from engine.demo.make_demo import prepare_demo

    return prepare_demo(folder)


def _real(folder: Path, shape: str) -> Path:
    """A job of low noise alone. What is there stays."""
    from benchmarks.whole_job import write_base, write_clips

    frames, height, width = (int(v) for v in shape.split("x"))
    if not (folder / "job.toml").exists():
        write_base(folder / "base", tiny=False)
        write_clips(folder / "clips", height=height, width=width, frames=frames + 8, count=3)
    found = Job(
        job=JobPanel(name="real"),
        model=ModelPanel(path=str(folder / "base")),
        multistage=MultistagePanel(high_noise=False),
        datasets=[
            DatasetPanel(path=str(folder / "clips"), num_frames=frames, resolutions=[round((height * width) ** 0.5)])
        ],
    )
    save_job(found, folder / "job.toml")
    return folder / "job.toml"


def _run(
    job: Job, gpus: list[int], per_clip: int, folder: Path, command: list[str], *, on_cpu: bool
) -> tuple[Path, float]:
    """Train it on GPUs of which so many share a clip; returns the run folder, and GiB of host memory."""
    folder.mkdir()
    shared = with_value(with_value(job, "job.gpus", gpus), "job.gpus_per_clip", per_clip)
    save_job(shared, folder / "job.toml")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(gpus)}"] if len(gpus) > 1 else []
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    trainer = [sys.executable, *launch, "-m", *command, str(folder / "job.toml"), "--out", str(folder)]
    run, memory = folder / job.job.name, math.nan
    with subprocess.Popen(trainer, env={**os.environ, **hidden}) as process:
        while process.poll() is None:
            if math.isnan(memory) and _has_begun(run / "events.jsonl"):
                memory = _memory(process.pid)
            time.sleep(LOOK_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, trainer)
    return run, memory


def _has_begun(events: Path) -> bool:
    return events.exists() and any(event.kind == "step" for event, _ in read_events(events))


def _memory(pid: int) -> float:
    """GiB of host memory of a process and all below it; what several of them map is counted once. nan where one ends
    meanwhile."""
    try:
        root = psutil.Process(pid)
        return float(sum(p.memory_full_info().pss for p in [root, *root.children(recursive=True)]) / 2**30)
    except psutil.NoSuchProcess:
        return math.nan


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _seconds(run: Path, round_of: int) -> dict[str, float]:
    """Loading, from the first step's begin to the end of the last one with what comes between, and a late step: the
    mean of a round."""
    events = [event for event, _ in read_events(run / "events.jsonl")]
    steps = [event for event in events if event.kind == "step"]
    first = steps[0].time - steps[0].data["seconds"]["total"]
    totals = [step.data["seconds"]["total"] for step in steps]
    begin = len(totals) // 2 // round_of * round_of
    end = max(len(totals) // round_of * round_of, begin + 1)
    return {
        "loading, s": _of(events, "started").time - events[0].time,
        "training, s": steps[-1].time - first,
        "a step, s": fmean(median(own) for i in range(round_of) if (own := totals[begin + i : end : round_of])),
        "of it encodes of the first rank, s": fmean(step.data["seconds"].get("vae", 0) for step in steps[begin:end]),
        "all, s": events[-1].time - events[0].time,
    }


def _of(events: list[Event], kind: str) -> Event:
    return next(event for event in events if event.kind == kind)


def _difference(one: Path, other: Path) -> float:
    """|difference| / |B| of the worse of the two files; 0 where all bits are the same."""
    files = sorted(one.glob("*_noise.safetensors"))
    assert files
    return max(_apart(load_file(file), load_file(other / file.name)) for file in files)


def _apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    if all(torch.equal(a[name], b[name]) for name in a):
        return 0.0
    learnt = [name for name in a if ".lora_B." in name]
    norms = [((a[name].double() - b[name].double()).norm(), a[name].double().norm()) for name in learnt]
    off, size = (torch.stack(list(column)).norm() for column in zip(*norms, strict=True))
    return float(off / size)


def _losses(run: Path) -> list[float]:
    return [event.data["loss"] for event, _ in read_events(run / "events.jsonl") if event.kind == "step"]


def _card() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    raise SystemExit(main())
