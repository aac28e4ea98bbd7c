"""`make torture`: trainers are killed, stopped, starved of disk and robbed of data at random, taken up again until they
are done, and what they leave behind is compared with a run that nothing disturbed, at zero tolerance.

The choices (job, instants, faults, damage, workers) come from the seed alone; an instant meets whatever the trainer
does then, so the same seed tries the same again and not to the instruction. Exit code 0: every run came to the same. 1:
one did not; its folder stays and is named.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.demo.tiny_base import build_tiny
from engine.runfolder import checkpoint
from engine.system import fault_injection
from presets.job.schema import Job
from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers import ROOT
from tests.helpers.jobs import write_job
from tests.helpers.training.attempts import ONE_THREAD, Attempt, Trainers
from tests.helpers.training.sameness import differences

STEPS = 12
BASE: dict[str, Any] = {
    "steps": STEPS,
    "save": {"every": 3, "keep": 3},
    "sample": {"every": 4, "steps": 2, "width": 64, "height": 48},
    "clips": 5,
}
JOBS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # keywords of write_job, changed fields
    "average, accumulation": ({"gradient_accumulation": 2, "ema": True, "prompts": 2}, {}),
    "preservation, dropout": ({"dop": True, "trigger": "frung", "dataset": {"caption_dropout": 0.3}, "prompts": 1}, {}),
    "batches, guidance": ({"batch_size": 2, "prompts": 1}, {"advanced.differential_guidance": True}),
    "one expert, schedule": (
        {"lr_scheduler": "cosine", "warmup_steps": 3, "gradient_accumulation": 3, "prompts": 0},
        {"multistage.high_noise": False},
    ),
}
STRUCK = {
    "fault": "killed at a named point",
    "disk": "disk full for a while",
    "order": "killed behind an order",
    "back": "killed as it went back",
}
MOST_DISTURBANCES = 6
DEADLINE = 300.0  # seconds for an attempt: longer is a hang of our own


@dataclass
class Tally:
    """What was done to the trainers, and came to nothing."""

    runs: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    attempts: int = 0

    @property
    def kills(self) -> int:
        return sum(n for what, n in self.done.items() if what.startswith("killed"))

    def add(self, other: "Tally") -> None:
        self.runs += other.runs
        self.done += other.done
        self.attempts += other.attempts


class Broken(Exception):
    """A run came to something else, or not to its end."""


def make_job(folder: Path, tiny: Path, name: str) -> tuple[Path, Path]:
    """(job file, run folder)"""
    keywords, changed = JOBS[name]
    path = write_job(folder, tiny, **{**BASE, **keywords})
    job: Job = load_job(path)
    for at, value in changed.items():
        job = with_value(job, at, value)
    save_job(job, path)
    return path, folder / "runs" / "t"


def anew(job: Path, *, resume: bool) -> Attempt:
    """A trainer as a user starts one: a new interpreter, `python -m engine`, its data workers by its own choice."""
    stderr = job.parent / f"stderr-{time.monotonic_ns()}"
    with stderr.open("w") as f:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine", str(job), *(["--resume"] if resume else [])],
            stderr=f,
            stdout=f,
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
        )
    return Attempt(process.pid, stderr, process=process)


def life(
    number: int,
    seed: int,
    folder: Path,
    tiny: Path,
    straights: dict[str, Path],
    usual: dict[str, float],
    trainers: Trainers,
) -> Tally:
    """One run, from its start through what befalls it to its end. Raises Broken."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choice(sorted(JOBS))
    path, run = make_job(folder, tiny, name)
    tally, stops = Tally(), False
    story = [name]
    for turn in range(rng.randint(1, MOST_DISTURBANCES) + 1):
        last = turn == MOST_DISTURBANCES
        what = rng.choice(
            ["kill", "kill", "kill", "term", "term twice", "fault", "fault", "disk", "hang", "order", "back"]
        )
        workers, fresh, instant = rng.choice([0, 0, 1, 2]), rng.random() < 0.1, rng.random() * usual[name] * 1.1
        point, step = (
            rng.choice(
                [
                    p
                    for p in fault_injection.POINTS
                    if not p.startswith(("event.", "control.", "abandon.", "rank.", "shared-"))
                ]
            ),
            rng.randint(0, STEPS),
        )
        written = rng.choice([p for p in fault_injection.POINTS if p.startswith(("save", "lora", "event"))])
        fault = {
            "fault": f"sigkill:{point}:{step}",
            "hang": f"hang:{point}:{step}",
            "disk": f"enospc:{written}:{step}",
        }.get(what)
        resume = (run / "events.jsonl").exists()
        whole, back = [checkpoint.step_of(f) for f in checkpoint.listed(run) if not checkpoint.verify(f)], None
        if what == "order" and resume:  # it changes nothing, and is honoured as soon as the attempt begins
            fault = f"sigkill:control.after-event:{max(whole, default=0)}"
            (run / "control").mkdir(exist_ok=True)
            (run / "control" / f"{turn}.json").write_text(
                json.dumps(
                    {"id": f"order-{turn}", "command": "set", "field": "save.keep", "value": str(BASE["save"]["keep"])}
                )
            )
        elif what == "back" and whole:
            back = rng.choice(whole)
            fault = f"sigkill:abandon.mid:{back}"
        if fresh and fault is None:
            attempt = anew(path, resume=resume)
        else:
            attempt = trainers.start(
                path, resume=resume, from_step=back, workers=workers, faults=[fault] if fault else [], retry_seconds=0.2
            )
        tally.attempts += 1
        story.append(
            f"{fault or what} after {instant:.2f} s with {workers}"
            f" workers{' in a new interpreter' if fresh and fault is None else ''}"
        )
        if not last:
            stops |= disturb(attempt, what, instant, tally)
        code = attempt.wait()
        if code == 0:
            break
        refused = code == 1 and what == "disk" and "the disk is full" in attempt.said()  # in front of the first step
        # the last: met before it listened
        if not refused and code not in (75, -signal.SIGKILL, -signal.SIGTERM):
            raise Broken(f"{story}: ended with {code}: {attempt.said()[-3000:]}")
        if rng.random() < 0.4:
            story.append(damage(rng, run, tally))
    else:
        tally.attempts += 1
        if (code := trainers.run(path, resume=True)) != 0:
            raise Broken(f"{story}: did not come to its end: {code}")
    if found := differences(run, straights[name], extra_saves=stops):
        raise Broken("\n".join([f"{run} is not as the undisturbed run: {story}", *found]))
    tally.runs[name] += 1
    return tally


def disturb(attempt: Attempt, what: str, instant: float, tally: Tally) -> bool:
    """Let it befall the attempt; returns whether it may have saved at a step of its own."""
    match what:
        case "fault" | "disk" | "order" | "back":
            attempt.ended.wait(DEADLINE)
            if "on purpose" in attempt.said():
                tally.done[STRUCK[what]] += 1
            return False
        case "hang":
            attempt.wait_until_struck()
            if not attempt.ended.is_set():
                attempt.kill()
                tally.done["killed while it hung"] += 1
            return False
    attempt.ended.wait(instant)
    if attempt.ended.is_set():
        return False
    match what:
        case "kill":
            attempt.kill()
            tally.done["killed at a random instant"] += 1
            return False
        case "term":
            attempt.kill(signal.SIGTERM)
            tally.done["stopped by SIGTERM"] += 1
        case "term twice":
            attempt.kill(signal.SIGTERM)
            attempt.ended.wait(0.02)
            attempt.kill(signal.SIGTERM)
            tally.done["stopped by SIGTERM, twice"] += 1
    return True


def damage(rng: random.Random, run: Path, tally: Tally) -> str:
    """What a power cut may do to files that were not synced, or a bad disk to any."""
    kind = rng.choice(
        [
            "torn checkpoint",
            "torn manifest",
            "torn event",
            "zeros in events",
            "torn LoRA file",
            "torn preview",
            "torn sheet",
        ]
    )
    patterns = {
        "torn checkpoint": ["checkpoints/step_?????????/*.safetensors"],
        "torn manifest": ["checkpoints/step_?????????/manifest.json"],
        "torn sheet": ["samples/compare_*", "samples/step_*/sheet.png"],
    }
    saved = [checkpoint.step_of(folder) for folder in checkpoint.listed(run)]
    patterns["torn LoRA file"] = [f"t_{step:09d}_*.safetensors" for step in saved]
    # those of steps that are passed are named, and not made again
    patterns["torn preview"] = [f"samples/step_{step:09d}/??.*" for step in range(max(saved, default=0), STEPS + 1)]
    events = run / "events.jsonl"
    if kind == "torn event" and events.exists():
        size = len(events.read_bytes().rstrip(b"\n").rpartition(b"\n")[2])
        os.truncate(events, max(0, events.stat().st_size - rng.randint(1, max(1, size))))
    elif kind == "zeros in events" and events.exists():
        with events.open("ab") as f:
            f.write(b"\0" * rng.randint(1, 4096))
    elif files := sorted(
        file for pattern in patterns.get(kind, []) for file in run.glob(pattern) if file.stat().st_size
    ):
        newest = (
            [f for f in files if f.parent == files[-1].parent]
            if kind in ("torn checkpoint", "torn manifest")
            else files
        )
        os.truncate(file := rng.choice(newest), rng.randint(0, file.stat().st_size - 1))
    else:
        return "nothing to damage"
    tally.done[kind] += 1
    return kind


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="default: the clock's; it is printed")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side")
    args = parser.parse_args()
    seed = int(time.time()) if args.seed is None else args.seed
    folder = Path(tempfile.mkdtemp(prefix="wltorture"))
    print(f"seed {seed}, {args.minutes:g} minutes, in {folder}", flush=True)
    total, began = Tally(), time.monotonic()
    with Trainers(cache=folder / "cache") as trainers, ThreadPoolExecutor(args.at_once) as pool:
        tiny = build_tiny(folder / "base")
        straights, usual = {}, {}
        for name in JOBS:
            path, straights[name] = make_job(
                folder / f"straight-{name.replace(', ', '-').replace(' ', '-')}", tiny, name
            )
            start = time.monotonic()
            if trainers.run(path) != 0:
                print(f"the undisturbed run of {name!r} failed", file=sys.stderr)
                return 1
            usual[name] = time.monotonic() - start
        number = 0
        while time.monotonic() - began < args.minutes * 60:
            lives = [
                pool.submit(life, n, seed, folder / f"life-{n}", tiny, straights, usual, trainers)
                for n in range(number, number + 2 * args.at_once)
            ]
            for n, running in enumerate(lives, number):
                try:
                    total.add(running.result())
                except (Broken, AssertionError) as e:
                    print(f"life {n} of seed {seed}: {e}", file=sys.stderr)
                    return 1
                shutil.rmtree(folder / f"life-{n}")
            number += len(lives)
            print(
                f"{time.monotonic() - began:5.0f} s: {sum(total.runs.values())} runs, {total.attempts} attempts,"
                f" {total.kills} kills survived",
                flush=True,
            )
    shutil.rmtree(folder)
    print(
        f"\n{sum(total.runs.values())} runs came to the same bits as undisturbed, through {total.attempts} attempts and"
        f" {total.kills} kills:"
    )
    for what, count in [*sorted(total.done.items()), *sorted(total.runs.items())]:
        print(f"  {count:5d}  {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
