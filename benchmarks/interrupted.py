"""A run of the real shape that is killed and resumed, against the same run undisturbed: preservation loss on, clips of
two sizes, under a cap of the card's memory.

    python -m benchmarks.interrupted --dir /dev/shm/wl --events FILE      (an NVIDIA card, 64 GiB of RAM, 60 GiB in DIR)
    python -m benchmarks.interrupted --dir /dev/shm/wl --alone            (without the undisturbed run: the steps done
    twice must agree)
    python -m benchmarks.interrupted --dir /dev/shm/wl --beside FILE      (also counts the steps that are the same in an
    earlier run's events)
    python -m benchmarks.interrupted --tiny --dir /tmp/wl                 (the same code on the CPU)

Trains 20 steps of 21 frames at 512 and 384 on the base that benchmarks.whole_job writes, checkpoint at 10, and a
preview of 41x768x768; then the same again, with SIGKILL to the trainer once step 14 is told, and a resume. Both runs
must come to the same as tests/helpers/training/sameness.py compares it: checkpoints, LoRA files, posters and events bit
for bit; and so must the losses of the steps done twice. Runs whose gradients are all 0 are alike and prove nothing:
FAIL. Prints PASS or FAIL; FILE gets the events of the killed run, with DIR in the place of its path.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.whole_job import write_base, write_clips
from presets.job.schema import (
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
from presets.job.toml_file import save_job
from presets.runs.events import Event, read_events
from tests.helpers.training.sameness import differences, without_gradient

STEPS, SAVED, KILLED = 20, 10, 14


def write_job(folder: Path, *, common: Path, tiny: bool) -> Path:
    """FOLDER/interrupted.toml, of the clips and the base in `common`."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    sides, frames, preview, shown = ([96, 64], 5, 64, 5) if tiny else ([512, 384], 21, 768, 41)
    Image.new("RGB", (preview, preview), (90, 120, 60)).save(common / "control.png")
    job = Job(
        job=JobPanel(name="interrupted", kind="character", trigger="frung"),
        model=ModelPanel(path=str(common / "base")),
        multistage=MultistagePanel(switch_every=1),
        save=SavePanel(every=SAVED),
        training=TrainingPanel(steps=STEPS, dop=True, dop_class="person"),
        datasets=[DatasetPanel(path=str(common / "clips"), num_frames=frames, resolutions=sides, sampling="realtime")],
        sample=SamplePanel(
            every=0,
            first=False,
            width=preview,
            height=preview,
            num_frames=shown,
            steps=4,
            prompts=[PromptPanel(prompt="frung, a red square", ctrl_img=str(common / "control.png"))],
        ),
    )
    path = folder / "interrupted.toml"
    save_job(job, path)
    return path


def events_of(run: Path) -> list[Event]:
    file = run / "events.jsonl"
    return [e for e, _ in read_events(file)] if file.exists() else []


def step_bits(events: list[Event]) -> dict[int, tuple[Any, ...]]:
    """Step -> what of it depends on every sum before; of the last attempt that made it."""
    return {
        e.data["step"]: tuple(e.data[key] for key in ("loss", "grad_norm", "clips", "timestep"))
        for e in events
        if e.kind == "step"
    }


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
    parser.add_argument("--alone", action="store_true", help="only the run that is killed and resumed")
    parser.add_argument("--events", type=Path, metavar="FILE")
    parser.add_argument(
        "--beside", type=Path, metavar="FILE", help="events of the same job, from another machine or version"
    )
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.beside and not args.beside.is_file():
        parser.error(f"--beside {args.beside}: no such file")
    if args.events and not args.events.parent.is_dir():
        parser.error(f"--events {args.events}: there is no folder {args.events.parent}")
    common = args.dir.resolve()
    if not (common / "base").exists():
        write_base(common / "base", tiny=args.tiny)
        side = 96 if args.tiny else 512
        write_clips(common / "clips", height=side, width=side, frames=12 if args.tiny else 49)
    straight, broken = common / "undisturbed", common / "interrupted"
    commands = [
        [sys.executable, "-m", "engine", str(write_job(folder, common=common, tiny=args.tiny)), "--vram", args.cap]
        for folder in (straight, broken)
    ]
    straight, broken = (folder / "runs" / "interrupted" for folder in (straight, broken))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if not args.alone and (failed := subprocess.run(commands[0], env=environment).returncode):
        print(f"undisturbed: exit {failed}\nFAIL")
        return 1
    trainer = subprocess.Popen(commands[1], env=environment)
    kill_after(trainer, broken, KILLED)
    print(f"killed: exit {trainer.wait()}", flush=True)
    resumed = subprocess.run([*commands[1], "--resume"], env=environment)

    events = events_of(broken)
    if args.events:
        args.events.write_text((broken / "events.jsonl").read_text().replace(str(common), "DIR"))
    before, after = (
        {e.data["step"]: e.data["loss"] for e in events if e.kind == "step" and e.attempt == attempt}
        for attempt in (1, 2)
    )
    twice = sorted(before.keys() & after.keys())
    other = [step for step in twice if before[step] != after[step]]
    made = [e.data["path"] for e in events if e.kind == "sample"]
    print(
        f"resumed: exit {resumed.returncode}; steps done twice: {twice}, with another loss: {other or 'none'};"
        f" previews: {made}",
        flush=True,
    )
    if args.beside:
        mine, theirs = step_bits(events), step_bits([e for e, _ in read_events(args.beside)])
        print(
            f"{args.beside.name}: {sum(mine[step] == theirs.get(step) for step in mine)} of {len(mine)} steps the same"
            " to the last bit"
        )
    apart = [] if args.alone else differences(broken, straight)
    if not args.alone:
        print(*apart[:20], f"{len(apart)} differences from the undisturbed run", sep="\n", flush=True)
    idle = without_gradient(broken)
    print(*idle, sep="\n", end="\n" if idle else "", flush=True)
    ended = (trainer.returncode, resumed.returncode) == (-signal.SIGKILL, 0)
    passed = ended and len(twice) >= KILLED - SAVED and not other and not apart and not idle and made
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
