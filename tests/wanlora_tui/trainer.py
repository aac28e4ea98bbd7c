"""A trainer for tests: a real process that writes a run folder as the engine does, as fast or as slowly as it is told.

The daemon starts it as `python trainer.py JOB --out DIR [--resume]`. The pace is in the job: `training.warmup_steps`
milliseconds per step (a field that means nothing here). A job called `broken...` fails at its third step.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import msgspec

from presets.events import Event
from presets.jobfile import load_job
from tests.wanlora_tui.runs import Tape


def main() -> int:
    job, out, resume = load_job(Path(sys.argv[1])), Path(sys.argv[3]), "--resume" in sys.argv
    run = out / job.job.name
    control = run / "control"
    control.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sys.argv[1], run / "job.toml")
    file = run / "events.jsonl"
    old = [msgspec.json.decode(line, type=Event) for line in file.read_bytes().splitlines()] if resume and file.exists() else []
    tape = Tape(job.job.name, job.training.steps)
    tape.now = time.time()
    tape.events = old
    begin = max((e.data["step"] for e in old if e.kind == "step"), default=0)
    tape.attempt = (old[-1].attempt if old else 0) + 1

    with file.open("ab") as f:

        def flush(count: int = 1) -> None:
            for event in tape.events[-count:]:
                f.write(msgspec.json.encode(event) + b"\n")
            f.flush()

        tape.start(begin)
        flush()
        for step in range(begin + 1, job.training.steps + 1):
            if job.job.name.startswith("broken") and step == 3:
                tape.add("failed", cause="out of memory", next="Lower datasets.resolutions.")
                flush()
                return 1
            time.sleep(job.training.warmup_steps / 1000)
            tape.now = time.time()
            tape.step(step)
            flush()
            if step % 20 == 0:
                (run / f"checkpoints/step_{step:09d}").mkdir(parents=True, exist_ok=True)
                tape.checkpoint(step)
                tape.sample(step)
                tape.write_posters(run)
                flush(2)
            for asked in control.glob("*.json"):
                assert json.loads(asked.read_text())["command"] == "stop"
                asked.unlink()
                (run / f"checkpoints/step_{step:09d}").mkdir(parents=True, exist_ok=True)
                tape.add("stopped", step=step, path=f"checkpoints/step_{step:09d}", why="asked to stop; go on with: wanlora resume")
                flush()
                return 75
        tape.done()
        flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
