"""A job on one GPU and on several of one host: the same LoRAs, and how much sooner.

    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --steps 20 --json apart.json
    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --on-cpu      (a job on the tiny base, gloo in NCCL's place)

For more than two cards, first raise RECORDED in presets/job/gpu_shares.py, which refuses what was never run: it stays
raised with the results of this.

Where both experts train and the number of GPUs is even, they train apart; else the GPUs share the micro-batches of each
step, so training.gradient_accumulation has to be a multiple of their number. The job's own previews are made. The runs
follow each other in one call, the one on the first GPU alone before and after, so that a machine that slows down shows
itself. Seconds are those from the attempt's start to its end, by its events, with and without loading.
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--gpus", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--on-cpu", action="store_true", help="show no GPU to the trainers")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    job = with_value(absolute_paths(load_job(args.job), args.job.resolve().parent), "training.steps", args.steps)
    with tempfile.TemporaryDirectory(prefix="gpus-apart") as folder:
        runs = {
            name: _run(job, gpus, Path(folder) / name, on_cpu=args.on_cpu)
            for name, gpus in (("one", args.gpus[:1]), ("several", args.gpus), ("one again", args.gpus[:1]))
        }
        alike = [_same_loras(runs["one"], runs[name]) for name in ("several", "one again")]
        found: dict[str, Any] = {"card": _card(), "gpus": len(args.gpus), "steps": args.steps}
        for name, run in runs.items():
            found |= {f"{name}: {part}": seconds for part, seconds in _seconds(run).items()}
    one = min(found["one: training, s"], found["one again: training, s"])
    found["times as fast"] = one / found["several: training, s"]
    found["LoRAs equal to one GPU's"], found["LoRAs of one GPU equal twice"] = alike
    for name, value in found.items():
        print(f"{name:<44}{value:>12.3f}" if isinstance(value, float) else f"{name:<44}{value!s:>12}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0 if all(alike) else 1


def _run(job: Job, gpus: list[int], folder: Path, *, on_cpu: bool) -> Path:
    """Train it; returns the run folder."""
    folder.mkdir()
    save_job(with_value(job, "job.gpus", gpus), folder / "job.toml")
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


def _same_loras(one: Path, other: Path) -> bool:
    files = sorted(one.glob("*_noise.safetensors"))
    assert files
    return all(_same(load_file(file), load_file(other / file.name)) for file in files)


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _card() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    raise SystemExit(main())
