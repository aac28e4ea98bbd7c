"""A job on one GPU and on several of one host: the same LoRAs, and how much sooner.

    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --steps 20 --json apart.json
    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --on-cpu      (a job on the tiny base, gloo in NCCL's place)
    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --per-clip 2 --steps 20 --json shared.json
    python -m benchmarks.gpus_apart --tiny DIR --gpus 0,1 --per-clip 2      (writes a job and its base into DIR; CPU)

For more than two cards, first raise RECORDED in presets/job/gpu_shares.py, which refuses what was never run, and
RECORDED_PER_CLIP for --per-clip: they stay raised with the results of this.

Where both experts train and the number of GPUs is even, they train apart; else the GPUs share the micro-batches of
each step, so training.gradient_accumulation has to be a multiple of their number. With --per-clip they share clips:
those LoRAs agree within rounding and not to the bit: printed are |difference| / |B| over all B of a file, which begin
as zero, and the largest difference of a step's loss, to be compared with those of other orders of adding. The job's
own previews are made. The runs follow each other in one call, the one on the first GPU alone before and after, so
that a machine that slows down shows itself. Seconds are those from the attempt's start to its end, by its events,
with and without loading.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from presets.job.schema import Job
from presets.job.toml_file import absolute_paths, load_job, save_job, with_value
from presets.runs.events import Event, read_events

TINY_STEPS = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, nargs="?")
    parser.add_argument("--gpus", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--per-clip", type=int, default=1, help="GPUs that share each clip")
    parser.add_argument("--on-cpu", action="store_true", help="show no GPU to the trainers")
    parser.add_argument("--tiny", type=Path, metavar="DIR", help="on the CPU, a job of the demo's clips and base there")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if (args.job is None) == (args.tiny is None):
        parser.error("name a job, or --tiny DIR")
    if args.tiny is not None:
        args.job, args.on_cpu, args.steps = _tiny(args.tiny), True, min(args.steps, TINY_STEPS)
    job = with_value(absolute_paths(load_job(args.job), args.job.resolve().parent), "training.steps", args.steps)
    with tempfile.TemporaryDirectory(prefix="gpus-apart") as folder:
        runs = {
            name: _run(job, gpus, per_clip, Path(folder) / name, on_cpu=args.on_cpu)
            for name, gpus, per_clip in (
                ("one", args.gpus[:1], 1),
                ("several", args.gpus, args.per_clip),
                ("one again", args.gpus[:1], 1),
            )
        }
        losses = [_losses(runs[name]) for name in ("one", "several")]
        apart = [_difference(runs["one"], runs[name]) for name in ("several", "one again")]
        found: dict[str, Any] = {"card": _card(), "gpus": len(args.gpus), "steps": args.steps}
        for name, run in runs.items():
            found |= {f"{name}: {part}": seconds for part, seconds in _seconds(run).items()}
    one = min(found["one: training, s"], found["one again: training, s"])
    found["times as fast"] = one / found["several: training, s"]
    found["difference of LoRAs from one GPU's"], found["the same of one GPU again"] = apart
    found["largest relative difference of a loss"] = max(abs(a - b) / a for a, b in zip(*losses, strict=True))
    for name, value in found.items():
        print(f"{name:<44}{value:>12.3g}" if isinstance(value, float) else f"{name:<44}{value!s:>12}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0 if apart[1] == 0 and (apart[0] == 0 or args.per_clip > 1) else 1


def _tiny(folder: Path) -> Path:
    """A job of a few clips and the tiny base."""
    from engine.demo.make_demo import prepare_demo

    return prepare_demo(folder)


def _run(job: Job, gpus: list[int], per_clip: int, folder: Path, *, on_cpu: bool) -> Path:
    """Train it; returns the run folder."""
    folder.mkdir()
    shared = with_value(with_value(job, "job.gpus", gpus), "job.gpus_per_clip", per_clip)
    save_job(shared, folder / "job.toml")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(gpus)}"] if len(gpus) > 1 else []
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    command = [sys.executable, *launch, "-m", "engine", str(folder / "job.toml"), "--out", str(folder)]
    subprocess.run(command, env={**os.environ, **hidden}, check=True)
    return folder / job.job.name


def _seconds(run: Path) -> dict[str, float]:
    """Loading, and from the first step's begin to the end of the last one, with what comes between."""
    events = [event for event, _ in read_events(run / "events.jsonl")]
    steps = [event for event in events if event.kind == "step"]
    first = steps[0].time - steps[0].data["seconds"]["total"]
    return {
        "loading, s": _of(events, "started").time - events[0].time,
        "training, s": steps[-1].time - first,
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
