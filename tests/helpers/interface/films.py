"""Recorded runs with real previews: a film and a poster for each prompt and step, told apart by their colours."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.interface.runs import Tape
from tests.helpers.videos import Picture, write_clip

FRAMES, FPS, WIDTH, HEIGHT = 12, 16.0, 64, 48
PROMPTS = ("orbit 360 around the castle", "dolly in on the well")


def scene(prompt: int, step: int, frame: int, width: int = WIDTH, height: int = HEIGHT) -> Picture:
    """A bright bar that goes from left to right, on a background of its prompt's colour, brighter with the steps."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, :, prompt % 3] = 60 + min(120, step)
    left = frame * width // FRAMES
    picture[:, left : left + width // FRAMES] = 255
    return picture


def add_samples(tape: Tape, step: int, prompts: int = 2) -> None:
    for i in range(prompts):
        name = f"samples/step_{step:09d}/{i:02d}"
        tape.add("sample", step=step, path=f"{name}.mp4", poster=f"{name}.png", prompt=PROMPTS[i % 2], seed=42 + i)


def write_films(run_dir: Path, tape: Tape, *, folder: str = "", steps: set[int] | None = None) -> None:
    """The files of all samples of a tape, or of some steps; below `folder` of the run, where a rollback left them."""
    for event in tape.events:
        if event.kind != "sample" or (steps is not None and event.data["step"] not in steps):
            continue
        step, film = event.data["step"], run_dir / folder / event.data["path"]
        film.parent.mkdir(parents=True, exist_ok=True)
        prompt = int(film.stem)
        write_clip(film, FRAMES, FPS, WIDTH, HEIGHT, picture=lambda i, p=prompt, s=step: scene(p, s, i))  # type: ignore[misc]
        Image.fromarray(scene(prompt, step, FRAMES // 2)).save(film.with_suffix(".png"))


def filmed(run_dir: Path, *, prompts: int = 2, steps: tuple[int, ...] = (0, 50, 100), until: int = 120) -> Tape:
    """A run that trains, with previews of each prompt at these steps; its events and files are written."""
    tape = Tape("orbit_v1")
    tape.start()
    for step in range(until + 1):
        if step:
            tape.step(step)
        if step in steps:
            add_samples(tape, step, prompts)
    tape.write(run_dir)
    write_films(run_dir, tape)
    return tape
