"""What measuring a held-out loss costs, and that training does not notice: the same job with and without it.

    python -m benchmarks.held_out --dir /dev/shm/wl      (an NVIDIA card, 64 GiB of RAM, 60 GiB in DIR)
    python -m benchmarks.held_out --tiny --dir /tmp/wl   (the same code on the CPU)

Trains 20 steps of 21 frames at 512 on the base that benchmarks.whole_job writes; then the same with three clips of
another shape in a folder of their own, measured every 10 steps. Both must come to the same losses and LoRA files, bit
for bit. Prints the seconds of each measurement beside what the planner predicts, their share of the run, and PASS or
FAIL.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import load_file

from benchmarks.whole_job import write_base, write_clips
from presets.facts.gather import gather
from presets.job.schema import (
    DatasetPanel,
    Job,
    JobPanel,
    ModelPanel,
    MultistagePanel,
    SavePanel,
    TrainingPanel,
    ValidationPanel,
)
from presets.job.toml_file import load_job, save_job
from presets.rules.plan_rules import prediction_of
from presets.runs.events import read_events

STEPS, EVERY = 20, 10


def write_job(folder: Path, *, common: Path, tiny: bool, measured: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    side, frames = (64, 5) if tiny else (512, 21)
    job = Job(
        job=JobPanel(name="held_out"),
        model=ModelPanel(path=str(common / "base")),
        multistage=MultistagePanel(switch_every=5),
        save=SavePanel(every=EVERY),
        training=TrainingPanel(steps=STEPS),
        datasets=[DatasetPanel(path=str(common / "clips"), num_frames=frames, resolutions=[side], sampling="realtime")],
        validation=ValidationPanel(path=str(common / "apart"), every=EVERY) if measured else ValidationPanel(),
    )
    path = folder / "held_out.toml"
    save_job(job, path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    common = args.dir.resolve()
    side, apart = (96, 48) if args.tiny else (512, 384)
    if not (common / "base").exists():
        write_base(common / "base", tiny=args.tiny)
        write_clips(common / "clips", height=side, width=side, frames=12 if args.tiny else 49)
    if not (common / "apart").exists():  # smaller, so of a shape that does not train
        write_clips(common / "apart", height=apart, width=apart, frames=12 if args.tiny else 49, count=3)
    runs = []
    for name in ("plain", "measured"):
        job = write_job(common / name, common=common, tiny=args.tiny, measured=name == "measured")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if failed := subprocess.run([sys.executable, "-m", "engine", str(job)], env=environment).returncode:
            print(f"{name}: exit {failed}\nFAIL")
            return 1
        runs.append(common / name / "runs" / "held_out")
    plain, measured = ([e for e, _ in read_events(run / "events.jsonl")] for run in runs)
    losses = [[e.data["loss"] for e in events if e.kind == "step"] for events in (plain, measured)]
    files = [{file.name: load_file(file) for file in sorted(run.glob("*_noise.safetensors"))} for run in runs]
    same = files[0].keys() == files[1].keys() and all(
        torch.equal(tensor, files[1][name][key]) for name in files[0] for key, tensor in files[0][name].items()
    )
    took = [e.data["seconds"] for e in measured if e.kind == "validation"]
    steps = [e.data["seconds"]["total"] for e in measured if e.kind == "step"]
    found = prediction_of(load_job(job), gather(load_job(job), job.parent, out=job.parent, scenes=False))
    predicted = f"{found.validation:.2f} s predicted" if found else "no plan is made here"
    print(f"measurements: {', '.join(f'{s:.2f}' for s in took)} s ({predicted}); the mean step {fmean(steps):.2f} s")
    print(f"share of steps and measurements: {sum(took) / (sum(took) + sum(steps)):.1%}")
    print(f"losses {'the same' if losses[0] == losses[1] else 'DIFFER'}, LoRA files {'the same' if same else 'DIFFER'}")
    passed = same and losses[0] == losses[1] and len(took) == STEPS // EVERY + 1
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
