"""A trainer for tests: a real process that writes a run folder as the engine does, as fast or as slowly as it is told.

The daemon starts it as `python trainer.py JOB --out DIR [--resume [--from STEP] [--accept-changes]]`. The pace is in
the job: `training.warmup_steps` milliseconds per step (a field that means nothing here). A job called `broken...` fails
at its third step; one called `cpu...` finds no GPU.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import msgspec

from presets.job.toml_file import get_value, job_to_dict, load_job, parse_value, with_value
from presets.runs.events import Event
from tests.helpers.interface.runs import Tape


def save(run: Path, step: int) -> None:
    folder = run / f"checkpoints/step_{step:09d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text('{"files": {"state.json": {"bytes": 150000000}}}')


def main() -> int:
    job, out, resume = load_job(Path(sys.argv[1])), Path(sys.argv[3]), "--resume" in sys.argv
    run = out / job.job.name
    control = run / "control"
    control.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sys.argv[1], run / "job.toml")
    file = run / "events.jsonl"
    old = (
        [msgspec.json.decode(line, type=Event) for line in file.read_bytes().splitlines()]
        if resume and file.exists()
        else []
    )
    tape = Tape(job.job.name, job.training.steps)
    tape.now, tape.job = time.time(), job_to_dict(job)
    tape.events = old
    if job.job.name.startswith("cpu"):
        tape.device = "CPU"
    begin = (
        int(sys.argv[sys.argv.index("--from") + 1])
        if "--from" in sys.argv
        else max((e.data["step"] for e in old if e.kind == "step"), default=0)
    )
    tape.attempt = (old[-1].attempt if old else 0) + 1

    with file.open("ab") as f:

        def flush(count: int = 1) -> None:
            for event in tape.events[-count:]:
                f.write(msgspec.json.encode(event) + b"\n")
            f.flush()

        tape.start(begin)
        flush()
        step = begin
        while step < job.training.steps:
            step += 1
            if job.job.name.startswith("broken") and step == 3:
                tape.add("failed", cause="out of memory", next="Lower datasets.resolutions.")
                flush()
                return 1
            time.sleep(job.training.warmup_steps / 1000)
            tape.now = time.time()
            tape.step(step)
            flush()
            if step % 20 == 0:
                save(run, step)
                tape.checkpoint(step)
                tape.sample(step)
                tape.write_posters(run)
                flush(2)
            # what it is asked for has a step of its own
            for asked in sorted(control.glob("*.json")) if step % 20 else ():
                order = json.loads(asked.read_text())
                asked.unlink()
                if order["command"] == "set":
                    before, job = (
                        get_value(job, order["field"]),
                        with_value(job, order["field"], parse_value(order["field"], order["value"])),
                    )
                    tape.add("changed", field=order["field"], old=before, new=get_value(job, order["field"]), step=step)
                elif order["command"] == "sample":
                    tape.sample(step)
                    tape.write_posters(run)
                else:
                    save(run, step)
                    tape.checkpoint(step)
                flush()
                if order["command"] == "stop":
                    tape.add(
                        "stopped",
                        step=step,
                        path=f"checkpoints/step_{step:09d}",
                        why="asked to stop; continue with: wanlora resume",
                    )
                    flush()
                    return 75
        tape.done()
        flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
