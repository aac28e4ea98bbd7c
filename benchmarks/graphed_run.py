"""A run of short clips of the real shape, with and without CUDA graphs: time, memory and bits.

    python -m benchmarks.graphed_run --dir /dev/shm/wl --json graphs.json       (an NVIDIA card, 100 GiB of RAM, 60 GiB
    of disk)
    python -m benchmarks.graphed_run --dir /dev/shm/wl --runs planned launched  (in parts, where one call is too short:
    python -m benchmarks.graphed_run --dir /dev/shm/wl --runs graphs             what is there is taken as it is)
    python -m benchmarks.graphed_run --dir /dev/shm/wl --precision qint8        (of the frozen experts; the runs of each
    precision lie in a folder of their own)
    python -m benchmarks.graphed_run --tiny --dir /tmp/wl                       (the same code on the CPU, where nothing
    is recorded)

Three runs of one job: "planned" without graphs, by the best plan that has none; "graphs", which is killed in the midst
and resumed; "launched", by the plan of "graphs" with every block launched. The last two must come to the same as
tests/helpers/training/sameness.py compares it: checkpoints, LoRA files, previews' posters and events, bit for bit. Both
experts train, with previews and a held-out loss of the same shape. Reserved memory stands beside what the planner says
of it (`wanlora plan`). Prints PASS or FAIL: the bits, and whether the graphs were taken and kept to the end.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, get_args

from benchmarks.interrupted import events_of, kill_after
from benchmarks.whole_job import write_base, write_clips
from presets.job.schema import (
    DatasetPanel,
    Job,
    JobPanel,
    ModelPanel,
    MultistagePanel,
    PromptPanel,
    QuantizationPanel,
    SamplePanel,
    SavePanel,
    TrainingPanel,
    ValidationPanel,
)
from presets.job.toml_file import save_job
from presets.planner.plan import Precision
from tests.helpers.training.sameness import differences

STEPS, SAVED, KILLED = 24, 8, 13
RUNS = ("planned", "launched", "graphs")
GIB = 2**30


def write_job(folder: Path, common: Path, *, graphs: bool, args: argparse.Namespace) -> Path:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    side, frames = (64, 5) if args.tiny else (args.side, args.frames)
    Image.new("RGB", (side, side), (90, 120, 60)).save(common / "control.png")
    job = Job(
        job=JobPanel(name="run", kind="character", trigger="frung"),
        model=ModelPanel(path=str(common / "base"), cuda_graphs=graphs),
        quantization=QuantizationPanel(transformer=args.precision),
        multistage=MultistagePanel(switch_every=2),
        save=SavePanel(every=SAVED),
        training=TrainingPanel(steps=STEPS, dop=args.dop, dop_class="person" if args.dop else ""),
        datasets=[DatasetPanel(path=str(common / "clips"), num_frames=frames, resolutions=[side], sampling="realtime")],
        validation=ValidationPanel(fraction=0.2, every=SAVED, bins=2),
        sample=SamplePanel(
            every=SAVED,
            first=False,
            width=side,
            height=side,
            num_frames=frames,
            steps=4,
            prompts=[PromptPanel(prompt="frung, a red square", ctrl_img=str(common / "control.png"))],
        ),
    )
    save_job(job, folder / "job.toml")
    return folder / "job.toml"


def launch_all() -> None:
    """The trainer in this process, as its arguments say, with blocks launched that its plan has as CUDA graphs."""
    from engine.__main__ import main as engine
    from engine.executor.block_graphs import BlockGraphs

    BlockGraphs.stage = lambda *_: None  # type: ignore[method-assign]
    sys.exit(engine())


def train(name: str, folder: Path, job: Path) -> list[int]:
    """The exit codes of its attempts."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    alone = "from benchmarks.graphed_run import launch_all; launch_all()"
    command = [sys.executable, *(["-c", alone] if name == "launched" else ["-m", "engine"]), str(job)]
    if name != "graphs":
        return [subprocess.run(command, env=environment).returncode]
    trainer = subprocess.Popen(command, env=environment)
    kill_after(trainer, folder / "runs" / "run", KILLED)
    return [trainer.wait(), subprocess.run([*command, "--resume"], env=environment).returncode]


def summary(folder: Path, job: Path, *, tiny: bool) -> dict[str, Any]:
    """What the events tell; `predicted` is what the planner says of it by now, with the card's measured rates."""
    events = events_of(folder / "runs" / "run")
    steps = [e for e in events if e.kind == "step"]
    found: dict[str, Any] = {"plan": next(e.data["plan"] for e in events if e.kind == "started")}
    late = [e for e in steps if e.data["step"] > 4 and e.data["step"] not in (SAVED + 1, SAVED + 2)]  # once recorded
    found["seconds_per_step"] = median(e.data["seconds"]["total"] for e in late)
    found["parts"] = {part: median(e.data["seconds"][part] for e in late) for part in late[0].data["seconds"]}
    found["each"] = [round(e.data["seconds"]["total"], 3) for e in steps]
    found["reserved_gib"] = max(e.data["vram_gib"] for e in steps)
    found["replanned"] = [e.data["why"] for e in events if e.kind == "replanned"]
    found["warnings"] = [e.data["text"] for e in events if e.kind == "log" and e.data["level"] == "warning"]
    if not tiny:
        command = [sys.executable, "-m", "wanlora_tui.cli", "plan", str(job), "--json"]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
        told = json.loads(said) if said.startswith("{") else {}
        if "prediction" in told:
            found["predicted"] = {
                "plan": told["plan"],
                "reserved_gib": told["prediction"]["peak_reserved"] / GIB,
                "seconds_per_step": told["seconds_per_step"],
            }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--dop", action="store_true", help="with the preservation loss")
    parser.add_argument("--precision", choices=("auto", *get_args(Precision)), default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    common = args.dir.resolve()
    if not (common / "base").exists():
        began = time.time()
        write_base(common / "base", tiny=args.tiny)
        print(f"base written in {time.time() - began:.0f} s", flush=True)
    clips = common / "clips"
    if not clips.exists():
        side, frames = (64, 12) if args.tiny else (args.side, args.frames + 4)
        write_clips(clips, height=side, width=side, frames=frames)
    rows: dict[str, Any] = {}
    good, mine = True, common / args.precision
    for name in RUNS:
        folder = mine / name
        run = folder / "runs" / "run"
        began = time.time()
        if name in args.runs and not run.exists():
            job = write_job(folder, common, graphs=name != "planned", args=args)
            codes = train(name, folder, job)
            good &= codes == ([-signal.SIGKILL, 0] if name == "graphs" else [0])
            print(f"{name}: exit {codes}, {time.time() - began:.0f} s", flush=True)
        if run.exists():
            rows[name] = summary(folder, folder / "job.toml", tiny=args.tiny)
            print(name, json.dumps(rows[name], indent=1), flush=True)
    if not args.tiny and "graphs" in rows:
        taken = "CUDA graphs up to" in rows["graphs"]["plan"]
        kept = not any("no CUDA graphs" in text for text in rows["graphs"]["warnings"])
        print(f"graphs taken: {taken}, kept to the end: {kept}")
        good &= taken and kept
    if {"graphs", "launched"} <= rows.keys():
        apart = differences(mine / "graphs/runs/run", mine / "launched/runs/run")
        print(*apart[:20], f"{len(apart)} differences of graphs from the same launched", sep="\n")
        good &= not apart
    if {"graphs", "planned"} <= rows.keys():
        before, now = (rows[name]["seconds_per_step"] for name in ("planned", "graphs"))
        print(f"{before:.3f} s a step as planned without graphs, {now:.3f} with: {before / now:.2f} times as fast")
    print("PASS" if good else "FAIL")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
