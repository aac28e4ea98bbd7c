"""A trainer without a model: the run folder, events, control files, signals and exit codes of the real one.

Run as the daemon runs the engine: fake_trainer.py [options] JOB --out DIR [--resume [--from STEP] [--accept-changes]]
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
import uuid
from pathlib import Path

import msgspec

from presets.job.toml_file import get_value, job_to_dict, load_job, parse_value, with_value
from presets.runs.events import Event, read_events


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--from", type=int, default=-1, dest="from_step")
    parser.add_argument("--accept-changes", action="store_true")
    parser.add_argument("--pace", type=float, default=0.01, help="seconds per step")
    parser.add_argument("--hold-at", type=int, default=-1, help="the step after which it waits for a request")
    parser.add_argument("--die-at", type=int, default=-1, help="the step after which it kills itself with SIGKILL")
    parser.add_argument("--exit-at", type=int, default=-1, help="the step after which it exits with code 3 and no word")
    parser.add_argument("--fail", action="store_true", help="say failed at once")
    parser.add_argument("--measured", action="store_true", help="tell a held-out loss at checkpoints, lowest at 20")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM and control files")
    parser.add_argument("--linger", action="store_true", help="stay after the last word")
    parser.add_argument(
        "--environ",
        type=Path,
        help="a folder: the environment of each attempt is written into it, as NAME-ATTEMPT.json",
    )
    args = parser.parse_args()

    asked: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if args.deaf else lambda number, _: asked.append(number))
    job = load_job(args.job)
    run_dir = args.out / job.job.name
    path = run_dir / "events.jsonl"
    (run_dir / "control").mkdir(parents=True, exist_ok=True)
    if (run_dir / "job.toml").exists() and not args.resume:
        print("this folder already holds a run", file=sys.stderr)
        return 1
    shutil.copyfile(args.job, run_dir / "job.toml")
    old = [event for event, _ in read_events(path)] if path.exists() else []
    seq, attempt, run = (old[-1].seq, old[-1].attempt + 1, old[-1].run) if old else (0, 1, uuid.uuid4().hex[:12])
    first = (
        max((e.data["step"] for e in old if e.kind == "checkpoint"), default=0)
        if args.from_step < 0
        else args.from_step
    )
    file = path.open("ab", buffering=0)
    if args.environ:
        (args.environ / f"{job.job.name}-{attempt}.json").write_text(json.dumps(dict(os.environ)))

    def emit(kind, **data):
        nonlocal seq
        seq += 1
        file.write(
            msgspec.json.encode(Event(seq=seq, time=time.time(), run=run, attempt=attempt, kind=kind, data=data))
            + b"\n"
        )

    def save(step):
        folder = run_dir / f"checkpoints/step_{step:09}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text('{"step": 0, "files": {"state.json": {"bytes": 7, "sha256": "0"}}}')
        emit("checkpoint", step=step, path=f"checkpoints/step_{step:09}", sha256="0")
        if args.measured:
            clips = [1 + abs(step - 20) / 100 + i / 1000 * step for i in range(3)]
            losses = {"loss": clips[1], "error": 0.1, "edges": [0.9, 1.0], "bins": [clips[1]], "clips": clips}
            experts = {"high_noise": losses}
            emit("validation", step=step, of="x", clips=["a", "b", "c"], experts=experts, seconds=0.1)

    def stop_asked(step):
        nonlocal job
        for control in [] if args.deaf else sorted((run_dir / "control").glob("*.json")):
            order = json.loads(control.read_text())
            control.unlink()
            match order:
                case {"command": "stop", "id": str()}:
                    asked.append(0)
                case {"command": "save", "id": str()}:
                    save(step)
                case {"command": "sample", "id": str()}:
                    emit(
                        "sample",
                        step=step,
                        path=f"samples/step_{step:09}/00.mp4",
                        poster=f"samples/step_{step:09}/00.png",
                        prompt="p",
                        seed=42,
                    )
                case {"command": "set", "id": str(), "field": field, "value": value}:
                    old = get_value(job, field)
                    job = with_value(job, field, parse_value(field, value))
                    emit("changed", field=field, old=old, new=get_value(job, field), step=step)
                case _:
                    raise AssertionError(order)
        return bool(asked) and not args.deaf

    facts = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "gpus": os.environ["CUDA_VISIBLE_DEVICES"],
        "args": sys.argv[1:],
        "cwd": str(Path.cwd()),
    }
    print("facts", json.dumps(facts), flush=True)
    if args.fail:
        emit("failed", cause="2 errors in the job.", next="Fix them.")
        return 1
    emit(
        "started",
        name=job.job.name,
        job=job_to_dict(job),
        plan="fake",
        versions={},
        device="cpu",
        steps=job.training.steps,
        resumed_from=first,
    )
    emit("phase", name="loading", done=1, total=1, text="")
    step = first
    while step < job.training.steps:
        step += 1
        time.sleep(args.pace)
        emit(
            "step",
            step=step,
            expert="high_noise" if step % 2 else "low_noise",
            loss=1 / step,
            lr=job.training.lr,
            grad_norm=0.1,
            timestep=900.0,
            seconds={"total": args.pace},
            vram_gib=0.0,
            ram_gib=0.1,
            clips=[0],
        )
        if step % 10 == 0:
            save(step)
        if step == args.die_at:
            print("last words of the log", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if step == args.exit_at:
            return 3
        while step == args.hold_at and not stop_asked(step):
            time.sleep(0.01)
        if stop_asked(step):
            save(step)
            emit("stopped", step=step, path=f"checkpoints/step_{step:09}", why="stopped on request")
            return 75
    emit("done", step=job.training.steps, files=["a.safetensors"], seconds=1.0)
    while args.linger:
        time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
