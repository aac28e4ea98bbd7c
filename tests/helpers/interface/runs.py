"""Runs made for tests: the events that a trainer writes, over a folder with a real poster."""

import math
import random
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from presets.runs.events import Event, EventKind

CALM = {"total": 0.31, "load": 0.01, "encode": 0.08, "forward": 0.1, "backward": 0.1, "optimizer": 0.02}


class Tape:
    """Writes events one after another, with the clock of the run."""

    def __init__(self, name: str = "orbit_v1", steps: int = 300) -> None:
        self.events: list[Event] = []
        self.name, self.steps, self.now, self.attempt = name, steps, 1_790_000_000.0, 1
        self.device = "NVIDIA H200"
        self.job: dict[str, Any] = {}

    def add(self, kind: EventKind, **data: Any) -> Event:
        self.now += 0.31
        event = Event(
            seq=len(self.events) + 1, time=self.now, run=f"run-{self.name}", attempt=self.attempt, kind=kind, data=data
        )
        self.events.append(event)
        return event

    def start(self, resumed_from: int = 0) -> None:
        self.add(
            "started",
            name=self.name,
            job=self.job,
            plan="float8, 40 of 40 blocks streamed, peak 6.0 GiB",
            versions={},
            device=self.device,
            steps=self.steps,
            resumed_from=resumed_from,
            vram_total_gib=140.0,
            ram_total_gib=512.0,
        )

    def step(self, step: int, loss: float | None = None) -> None:
        expert = "high_noise" if (step - 1) // 10 % 2 == 0 else "low_noise"
        noise = random.Random(step).gauss(0, 0.2)
        base = (0.18 if expert == "high_noise" else 0.09) * (1 + 0.6 * math.exp(-step / 100)) * math.exp(noise)
        self.add(
            "step",
            step=step,
            expert=expert,
            loss=base if loss is None else loss,
            lr=1e-4,
            grad_norm=0.42,
            timestep=700.0,
            seconds=CALM,
            vram_gib=18.2,
            ram_gib=61.5,
            clips=["a.mp4"],
        )

    def phase(self, name: str, done: int = 0, total: int = 0, text: str = "") -> None:
        self.add("phase", name=name, done=done, total=total, text=text)

    def sample(self, step: int) -> None:
        self.add(
            "sample",
            step=step,
            path=f"samples/step_{step:09d}/00.mp4",
            poster=f"samples/step_{step:09d}/00.png",
            prompt="orbit 360 around the castle",
            seed=42,
        )

    def checkpoint(self, step: int) -> None:
        self.add("checkpoint", step=step, path=f"checkpoints/step_{step:09d}", sha256="ab")

    def finding(self, severity: str, code: str = "speed-factor") -> None:
        self.add(
            "finding",
            code=code,
            severity=severity,
            field="datasets[0].sampling",
            message="castle.mp4 would play 1.6 times faster.",
            fix="Use realtime sampling.",
        )

    def done(self) -> None:
        self.add(
            "done",
            step=self.steps,
            files=[f"{self.name}_high_noise.safetensors", f"{self.name}_low_noise.safetensors"],
            seconds=93.0,
        )

    def write(self, run_dir: Path) -> Path:
        """Write events.jsonl and a poster for each sample; gives the events file."""
        run_dir.mkdir(parents=True, exist_ok=True)
        file = run_dir / "events.jsonl"
        file.write_bytes(b"".join(msgspec.json.encode(e) + b"\n" for e in self.events))
        self.write_posters(run_dir)
        return file

    def write_posters(self, run_dir: Path) -> None:
        for event in self.events:
            if event.kind == "sample":
                poster = run_dir / event.data["poster"]
                poster.parent.mkdir(parents=True, exist_ok=True)
                Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(poster)


def usual(name: str = "orbit_v1", *, steps: int = 300, until: int = 120) -> Tape:
    """A run with loading, first previews, steps, a preview, a checkpoint and a warning; done when `until` reaches
    `steps`."""
    tape = Tape(name, steps)
    tape.phase("loading", 1, 3, "text encoder")
    tape.start()
    tape.finding("warning")
    tape.phase("sampling", 5, 25, "orbit 360 around the castle")
    tape.sample(0)
    for step in range(1, until + 1):
        tape.step(step)
        if step % 50 == 0:
            tape.checkpoint(step)
            tape.sample(step)
    if until == steps:
        tape.done()
    return tape
