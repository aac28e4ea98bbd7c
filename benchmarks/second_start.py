"""How long a job takes from its start to the end of its first step: the first on a machine, and one that finds what the
first has left (packed weights, compiled code, measured rates, encoded captions).

    python -m benchmarks.second_start --dir /dev/shm/wl --json starts.json     (an NVIDIA card, 100 GiB of RAM, 60 GiB
    of disk)
    python -m benchmarks.second_start --tiny --dir /tmp/wl                      (the same code on the CPU)

Writes a base of random weights of the real shape, a text encoder that is only as wide as the real one, and clips, if
they are not there; then runs `python -m engine` on jobs that are alike but for their names. Both experts train,
without previews and without a held-out loss. What a start does is told by the run's events: seconds from each to the
next are counted for what the first of them says. The files of a second start are in the page cache, as they are where a
machine trains one job after the other; --cold drops the base from it before each job. --stacks writes what the main
thread did beside the jobs (`benchmarks.stacks`), which takes a little time itself.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.loading import drop_pages
from benchmarks.whole_job import write_base, write_clips
from presets.job.schema import (
    DatasetPanel,
    Job,
    JobPanel,
    ModelPanel,
    MultistagePanel,
    SamplePanel,
    SavePanel,
    TrainingPanel,
)
from presets.job.toml_file import save_job
from presets.runs.events import Event, read_events

STEPS = 4
SHOWN = 0.05  # seconds: less is added up


def write_job(folder: Path, name: str, args: argparse.Namespace) -> Path:
    side, frames = (64, 5) if args.tiny else (args.side, args.frames)
    job = Job(
        job=JobPanel(name=name),
        model=ModelPanel(path=str(folder / "base")),
        multistage=MultistagePanel(switch_every=2),
        save=SavePanel(every=STEPS),
        training=TrainingPanel(steps=STEPS),
        datasets=[DatasetPanel(path="clips", num_frames=frames, resolutions=[side], sampling="realtime")],
        sample=SamplePanel(prompts=[]),
    )
    path = folder / f"{name}.toml"
    save_job(job, path)
    return path


def said(event: Event, before: str) -> str:
    """What the trainer is at after an event; `before` is what it was at."""
    if event.kind == "phase":
        return f"{event.data['name']}: {event.data['text']}".removesuffix(": ")
    # the last finding is the last that its check of the job says
    behind = {"finding": "torch imported, the card opened and its rates looked up", "started": "the first step"}
    return behind.get(event.kind, before)


def summary(run: Path, began: float) -> dict[str, Any]:
    """Seconds up to the end of the first step, in all and by what was done; those of its own parts."""
    events = [event for event, _ in read_events(run / "events.jsonl")]
    first = next(i for i, event in enumerate(events) if event.kind == "step")
    at = "Python, the job read"
    parts: dict[str, float] = {at: events[0].time - began}
    for event, following in pairwise(events[: first + 1]):
        at = said(event, at)
        parts[at] = parts.get(at, 0.0) + following.time - event.time
    steps = [event.data["seconds"] for event in events if event.kind == "step"]
    return {
        "plan": next(event.data["plan"] for event in events if event.kind == "started"),
        "to_started": next(event.time for event in events if event.kind == "started") - began,
        "to_first_step": events[first].time - began,
        "parts": parts,
        "first_step": steps[0],
        "steps": [step["total"] for step in steps],
    }


def show(name: str, found: dict[str, Any]) -> None:
    print(
        f"{name}: {found['to_first_step']:.1f} s to the end of the first step, {found['to_started']:.1f} to its begin"
    )
    long = {what: seconds for what, seconds in found["parts"].items() if seconds >= SHOWN}
    for what, seconds in sorted(long.items(), key=lambda one: -one[1]):
        print(f"  {seconds:7.2f} s  {what}")
    print(f"  {sum(found['parts'].values()) - sum(long.values()):7.2f} s  the rest")
    print(f"  of the first step {', '.join(f'{part} {s:.2f}' for part, s in found['first_step'].items())}")
    print(f"  steps {', '.join(f'{seconds:.2f}' for seconds in found['steps'])} s; {found['plan']}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--frames", type=int, default=41)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--stacks", action="store_true", help="write what the main thread did, as START-stacks.txt")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if not (args.dir / "base").exists():
        began = time.time()
        write_base(args.dir / "base", tiny=args.tiny)
        side = 64 if args.tiny else args.side
        write_clips(args.dir / "clips", height=side, width=side, frames=12 if args.tiny else 49)
        print(f"base and clips written in {time.time() - began:.0f} s", flush=True)
    rows: dict[str, Any] = {}
    for number in range(1, args.starts + 1):
        name = f"start-{number}"
        job = write_job(args.dir, name, args)
        if args.cold:
            drop_pages(args.dir / "base")
        stacks = ["benchmarks.stacks", str(args.dir / f"{name}-stacks.txt")] if args.stacks else []
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-m", *stacks, "engine", str(job)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        if done.returncode:
            print(done.stderr[-3000:], file=sys.stderr)
            return 1
        rows[name] = summary(args.dir / "runs" / name, began)
        show(name, rows[name])
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
