"""A run of the real shape that is killed and resumed: preservation loss on, under a cap of the card's memory.

    python -m benchmarks.interrupted --dir /dev/shm/wl --events FILE      (an NVIDIA card, 64 GiB of RAM, 60 GiB in DIR)
    python -m benchmarks.interrupted --tiny --dir /tmp/wl                 (the same code on the CPU)

Trains 20 steps of 21x512x512 on the base that benchmarks.whole_job writes, checkpoint at 10, kills the trainer with SIGKILL once step 14 is
told, resumes, and lets it finish with its preview of 41x768x768. Steps 11 to 14 are done twice: their losses must agree bit for bit.
Prints PASS or FAIL; FILE gets the run's events, with DIR in the place of its path.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.whole_job import write_base, write_clips
from presets.events import Event, read_events
from presets.job import (
    DatasetPanel,
    Job,
    JobPanel,
    ModelPanel,
    MultistagePanel,
    PromptPanel,
    SamplePanel,
    SavePanel,
    TrainingPanel,
)
from presets.jobfile import save_job

STEPS, SAVED, KILLED = 20, 10, 14


def write_job(folder: Path, base: Path, *, tiny: bool) -> Path:
    from PIL import Image

    side, frames, preview, shown = (64, 5, 64, 5) if tiny else (512, 21, 768, 41)
    Image.new("RGB", (preview, preview), (90, 120, 60)).save(folder / "control.png")
    job = Job(
        job=JobPanel(name="interrupted", kind="character", trigger="frung"), model=ModelPanel(path=str(base)), multistage=MultistagePanel(switch_every=1),
        save=SavePanel(every=SAVED), training=TrainingPanel(steps=STEPS, dop=True, dop_class="person"),
        datasets=[DatasetPanel(path="clips", num_frames=frames, resolutions=[side], sampling="realtime")],
        sample=SamplePanel(every=0, first=False, width=preview, height=preview, num_frames=shown, steps=4, prompts=[PromptPanel(prompt="frung, a red square", ctrl_img="control.png")]),
    )  # fmt: skip
    path = folder / "interrupted.toml"
    save_job(job, path)
    return path


def events_of(run: Path) -> list[Event]:
    file = run / "events.jsonl"
    return [e for e, _ in read_events(file)] if file.exists() else []


def kill_after(process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """SIGKILL to the trainer once it has told of `step`."""
    while process.poll() is None:
        if any(e.kind == "step" and e.data["step"] >= step for e in events_of(run)):
            process.send_signal(signal.SIGKILL)
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--cap", default="24", help="GiB of the card that the run may use")
    parser.add_argument("--events", type=Path, metavar="FILE")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    base = args.dir / "base"
    if not base.exists():
        write_base(base, tiny=args.tiny)
        write_clips(args.dir / "clips", side=64 if args.tiny else 512, frames=12 if args.tiny else 49)
    path, run = write_job(args.dir, base, tiny=args.tiny), args.dir / "runs" / "interrupted"
    command = [sys.executable, "-m", "engine", str(path), "--vram", args.cap]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    trainer = subprocess.Popen(command, env=environment)
    kill_after(trainer, run, KILLED)
    print(f"killed: exit {trainer.wait()}", flush=True)
    resumed = subprocess.run([*command, "--resume"], env=environment)

    events = events_of(run)
    if args.events:
        told = (run / "events.jsonl").read_text()
        args.events.write_text(told.replace(str(args.dir.resolve()), "DIR").replace(str(args.dir), "DIR"))
    losses = [{e.data["step"]: e.data["loss"] for e in events if e.kind == "step" and e.attempt == attempt} for attempt in (1, 2)]
    twice = sorted(losses[0].keys() & losses[1].keys())
    same = [step for step in twice if losses[0][step] == losses[1][step]]
    made = [e.data["path"] for e in events if e.kind == "sample"]
    print(f"steps done twice: {twice}, the same loss to the bit: {same}; previews: {made}; end: {events[-1].kind}, exit {resumed.returncode}", flush=True)
    passed = trainer.returncode == -signal.SIGKILL and resumed.returncode == 0 and len(twice) >= KILLED - SAVED and twice == same and bool(made)
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
