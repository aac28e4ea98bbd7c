"""A recorded run of 2400 noisy steps, for tests and for looking: two experts whose trends halve, previews, checkpoints,
a change of the learning rate, a step that was not finite, a stop with its resume, and a rollback with the branch that
it left. The trainer's own writer of events writes it, and the seed decides every number.

By hand, `python -m tests.helpers.recorded_run DIR` makes two of them and a table of jobs that holds both: then
`wanlora attach noisy_v1 --dir DIR` shows the one, and the other is there to compare with.
"""

import json
import math
import random
import sys
from pathlib import Path

import msgspec
from PIL import Image

from daemon.queue.entry import Entry
from daemon.table.job_store import Store
from daemon.wire.paths import daemon_paths
from engine.runfolder.event_log import EventLog
from presets.findings import Finding
from presets.job.schema import DatasetPanel, Job, JobPanel, PromptPanel, SamplePanel, SavePanel, TrainingPanel
from presets.job.toml_file import job_to_dict, save_job
from presets.runs.run_folder import RESERVE_FILE

STEPS = 2400
BEGAN = 1_790_000_000.0  # wall clock of the first event
TURN = 10  # steps of one expert
SAVE_EVERY, SAMPLE_EVERY = 200, 400
LR, LOWER_LR, LOWER_FROM = 1e-4, 5e-5, 700  # the rate changes after this step
WARMUP = 50
NOT_FINITE = 555  # the step that was skipped
STOPPED = 1000  # attempt 1 was asked to stop here, and attempt 2 resumed from it
WORSE_FROM, LEFT_AT, BACK_TO = 1500, 1700, 1400  # attempt 2 went astray and was left; attempt 3 began here
STEP_SECONDS, SAVE_SECONDS, PREVIEW_SECONDS = 1.9, 6.0, 75.0
PROMPTS = ("orbit 360 around the castle", "a red kite over the dunes, slow zoom out")
LEVEL = {"high_noise": 0.18, "low_noise": 0.1}  # of the loss at first; the trend halves it
NOISE = 0.45  # of the logarithm of single steps


def expert_at(step: int) -> str:
    return "high_noise" if (step - 1) // TURN % 2 == 0 else "low_noise"


def trend_at(step: int) -> float:
    """The expected loss of a step of its expert."""
    return LEVEL[expert_at(step)] * (0.5 + 0.5 * math.exp(-step / 600))


class Recorder:
    """Writes the events of a run with a clock of its own."""

    def __init__(self, folder: Path, name: str, steps: int, seed: int) -> None:
        self.folder, self.name, self.steps, self.seed = folder, name, steps, seed
        self.lr, self.now = LR, BEGAN
        folder.mkdir(parents=True)
        self.job = Job(
            job=JobPanel(name=name),
            datasets=[DatasetPanel(path="clips")],
            training=TrainingPanel(steps=steps, lr=LR),
            save=SavePanel(every=SAVE_EVERY),
            sample=SamplePanel(every=SAMPLE_EVERY, prompts=[PromptPanel(prompt=p) for p in PROMPTS]),
        )
        save_job(self.job, folder / "job.toml")

    def attempt(self, resumed_from: int = 0, *, rollback: bool = False) -> EventLog:
        """Begin one: what a trainer says before its first step."""
        log = EventLog(self.folder, listener=lambda event: None, clock=lambda: self.now)
        if rollback:
            folder = f"abandoned/attempt_{log.attempt - 1}"
            text = f"going back to step {resumed_from}: what came after it moves to {folder}"
            log.emit("log", level="info", text=text, rollback=resumed_from, folder=folder)
        log.phase("loading", 1, 3, "text encoder")
        self.now += 40
        log.emit(
            "started",
            name=self.name,
            job=job_to_dict(self.job),
            plan="float8, 26 of 40 blocks resident, peak 22.2 GiB",
            versions={},
            device="NVIDIA GeForce RTX 4090",
            steps=self.steps,
            resumed_from=resumed_from,
            rollback=rollback,
            vram_total_gib=24.0,
            ram_total_gib=128.0,
        )
        if not resumed_from:
            self.previews(log, 0)
        return log

    def train(self, log: EventLog, first: int, last: int) -> None:
        """Steps `first` to `last`, with all that comes between them."""
        for step in range(first, last + 1):
            self.step(log, step)
            if step == LOWER_FROM:
                log.emit("changed", field="training.lr", old=LR, new=LOWER_LR, step=step)
                self.lr = LOWER_LR
            if step % SAVE_EVERY == 0 or step == self.steps:
                self.save(log, step)
            if step % SAMPLE_EVERY == 0 or step == self.steps:
                self.previews(log, step)

    def step(self, log: EventLog, step: int) -> None:
        draw = random.Random(f"{self.seed} {log.attempt} {step}")
        pace = STEP_SECONDS * draw.uniform(0.95, 1.1)
        self.now += pace
        if step == NOT_FINITE:
            text = f"step {step}: the loss or gradient is not finite; the step was skipped, number 1 in this run"
            found = Finding(code="non-finite", severity="warning", field="training.lr", message=text, fix="Lower it")
            log.finding(found, step=step)
            return
        loss = trend_at(step) * math.exp(draw.gauss(0, NOISE) - NOISE**2 / 2)
        if log.attempt == 2 and step > WORSE_FROM:
            loss *= 1 + 1.5 * (step - WORSE_FROM) / (LEFT_AT - WORSE_FROM)
        log.emit(
            "step",
            step=step,
            expert=expert_at(step),
            loss=loss,
            parts={"flow": loss},
            lr=self.lr * min(1.0, step / WARMUP),
            grad_norm=0.3 * math.exp(draw.gauss(0, 0.4)),
            timestep=draw.uniform(900, 1000) if expert_at(step) == "high_noise" else draw.uniform(0, 900),
            seconds={"total": pace, "load": 0.02, "encode": 0.2, "forward": 0.6, "backward": 0.9, "optimizer": 0.1},
            vram_gib=22.1,
            ram_gib=61.5,
            clips=["castle_01.mp4"],
        )

    def save(self, log: EventLog, step: int) -> None:
        log.phase("saving", 0, 1)
        self.now += SAVE_SECONDS
        place = self.folder / f"checkpoints/step_{step:09d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "manifest.json").write_text(json.dumps({"files": {"state.json": {"bytes": 460_000_000}}}))
        log.emit("checkpoint", step=step, path=f"checkpoints/step_{step:09d}", sha256="ab")

    def previews(self, log: EventLog, step: int) -> None:
        place = self.folder / f"samples/step_{step:09d}"
        place.mkdir(parents=True, exist_ok=True)
        for i, prompt in enumerate(PROMPTS):
            log.phase("sampling", i, len(PROMPTS), prompt)
            self.now += PREVIEW_SECONDS
            Image.linear_gradient("L").rotate(90 * i).resize((96, 64)).convert("RGB").save(place / f"{i:02d}.png")
            path = f"samples/step_{step:09d}/{i:02d}"
            log.emit("sample", step=step, path=f"{path}.mp4", poster=f"{path}.png", prompt=prompt, seed=42)

    def leave(self) -> None:
        """Move what came after the rollback's step to where the trainer moves it."""
        for kind in ("checkpoints", "samples"):
            aside = self.folder / "abandoned/attempt_2" / kind
            aside.mkdir(parents=True)
            for place in sorted((self.folder / kind).iterdir()):
                if int(place.name.removeprefix("step_")) > BACK_TO:
                    place.rename(aside / place.name)


def write(folder: Path, name: str = "noisy_v1", *, steps: int = STEPS, seed: int = 0) -> Path:
    """Write a run of more than 1700 steps that is done, into `folder`/`name`; gives that run folder, which must not be
    there yet."""
    assert steps > LEFT_AT
    run = Recorder(folder / name, name, steps, seed)
    log = run.attempt()
    run.train(log, 1, STOPPED)
    path = f"checkpoints/step_{STOPPED:09d}"
    log.emit("stopped", step=STOPPED, path=path, why="asked to stop; continue with: wanlora resume")
    log.close()
    run.now += 3600
    log = run.attempt(STOPPED)
    run.train(log, STOPPED + 1, LEFT_AT)
    log.emit("stopped", step=LEFT_AT, path="", why="asked to stop; continue with: wanlora resume")
    log.close()
    run.now += 600
    run.leave()
    log = run.attempt(BACK_TO, rollback=True)
    run.train(log, BACK_TO + 1, steps)
    files = [f"{name}_high_noise.safetensors", f"{name}_low_noise.safetensors"]
    log.emit("done", step=steps, files=files, seconds=run.now - BEGAN)
    log.close()
    (run.folder / RESERVE_FILE).unlink(missing_ok=True)
    return run.folder


def write_for_daemon(folder: Path, *names: str) -> None:
    """A run of each name, and a table of jobs that holds them, for a daemon in `folder`."""
    from wanlora_tui.screenshot import load_run  # brings the screens, which no test of a run alone needs

    paths = daemon_paths(folder)
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store(paths.database)
    for i, name in enumerate(names, 1):
        run = write(folder, name, seed=i)
        record = msgspec.structs.replace(load_run(run / "events.jsonl").record, id=i)
        with store:
            store.save(Entry(record=record, order=i))
    store.close()


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    write_for_daemon(folder, "noisy_v1", "noisy_v2")
    print(f"wanlora attach noisy_v1 --dir {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
