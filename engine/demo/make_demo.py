"""The demo: everything a first training needs, made on the spot and offline.

    python -m engine.demo.make_demo DIR [--steps N]

writes DIR/clips (12 short clips of a camera that orbits a subject, with captions), DIR/clips_control (first frames of
scenes that are not among them, for the previews), DIR/base (the tiny model) and DIR/job.toml (the motion preset, cut
down to their size). What is there and whole is kept, so a second run takes no time.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image

from engine.demo.tiny_base import build_tiny
from presets.atomic_file import replacing, write_file
from presets.clips.clip_facts import scan_dataset
from presets.errors import UserError
from presets.job.schema import DatasetPanel
from presets.job.toml_file import job_from_dict, job_to_dict, load_job, save_job
from presets.machine.machine import read_machine
from presets.recipes.recommend import recommend

WIDTH, HEIGHT = 128, 96
SECONDS = 1.5
MANIFEST = ".demo.json"
VERSION = 1  # of the drawings: a higher one makes all files anew
STEPS = 40

Picture = NDArray[np.uint8]  # height x width x 3, RGB
COLOURS = {
    "red": (214, 48, 40),
    "green": (46, 168, 84),
    "blue": (52, 92, 214),
    "yellow": (236, 196, 48),
    "white": (238, 236, 228),
}
# Radius over height of each subject, both from 0 to 1: all are solids of revolution.
SHAPES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "ball": lambda h: np.sqrt(np.clip(1 - (2 * h - 1) ** 2, 0, 1)),
    "drum": lambda h: np.full_like(h, 0.8),
    "cone": lambda h: 0.95 * (1 - h),
    "vase": lambda h: 0.5 + 0.3 * np.sin(2 * math.pi * h + 0.4) + 0.1 * h,
}


class Scene(Struct, frozen=True):
    """One clip: the camera goes round a subject that stands on a chequered floor before hills."""

    colour: str
    shape: str
    seed: int  # of the surroundings
    fps: int

    @property
    def name(self) -> str:
        return f"{self.colour}_{self.shape}"

    @property
    def caption(self) -> str:
        return f"orbit around the {self.colour} {self.shape}"


SCENES = [
    Scene(colour, shape, 4 * i + k, fps=(16, 20, 24)[(i + k) % 3])
    for i, colour in enumerate(("red", "green", "blue"))
    for k, shape in enumerate(SHAPES)
]
UNSEEN = [Scene("yellow", "ball", 101, 16), Scene("white", "vase", 102, 16)]


def draw(scene: Scene, angle: float) -> Picture:
    """The view of a scene from a camera that has gone `angle` radians around it, drawn at twice the size and
    averaged."""
    rng = np.random.default_rng(scene.seed)
    sky, hill, floor_a, floor_b = (
        rng.uniform((90, 110, 150), (190, 200, 245)),
        rng.uniform(30, 120, 3),
        rng.uniform(120, 200, 3),
        rng.uniform(40, 110, 3),
    )
    waves, phases = rng.integers(2, 7, 3), rng.uniform(0, 2 * math.pi, 3)
    y, x = (np.mgrid[0 : 2 * HEIGHT, 0 : 2 * WIDTH] + 0.5) / (2 * HEIGHT)
    x = x - WIDTH / HEIGHT / 2  # both in picture heights, x from the middle
    horizon = 0.48

    bearing = x - angle  # the far surroundings pass the other way as the near side of the subject
    ridge = horizon - 0.08 - 0.025 * sum(np.sin(w * bearing + p) for w, p in zip(waves, phases, strict=True))
    picture = sky + (255 - sky) * (0.6 * y / horizon)[..., None]
    picture = np.where((y > ridge)[..., None], hill, picture)

    depth = 0.5 / np.maximum(y - horizon, 1e-3)  # the floor, seen in perspective and turned about the subject's foot
    side, ahead = x * depth * 1.4, depth - 1.25
    turned = np.floor(2 * (side * math.cos(angle) - ahead * math.sin(angle))) + np.floor(
        2 * (side * math.sin(angle) + ahead * math.cos(angle))
    )
    haze = np.clip(1.6 / depth, 0.25, 1)[..., None]
    floor = np.where((turned % 2 == 0)[..., None], floor_a, floor_b) * haze + hill * (1 - haze)
    picture = np.where((y > horizon)[..., None], floor, picture)

    height = (0.88 - y) / 0.68  # the subject stands from 0.20 to 0.88 of the picture
    radius = 0.34 * SHAPES[scene.shape](np.clip(height, 0, 1))
    inside = (np.abs(x) < radius) & (height > 0) & (height < 1)
    sine = np.where(inside, x / np.maximum(radius, 1e-6), 0)
    stripes = np.sin(5 * (np.arcsin(np.clip(sine, -1, 1)) + angle)) > 0.3
    light = 0.45 + 0.55 * np.clip(0.8 * np.sqrt(np.clip(1 - sine**2, 0, 1)) - 0.6 * sine, 0, 1)
    colour = (
        np.where(stripes[..., None], np.array(COLOURS[scene.colour]) * 0.45, np.array(COLOURS[scene.colour]))
        * light[..., None]
    )
    picture = np.where(inside[..., None], colour, picture)
    small: Picture = picture.clip(0, 255).reshape(HEIGHT, 2, WIDTH, 2, 3).mean((1, 3)).round().astype(np.uint8)
    return small


def write_clip(path: Path, scene: Scene) -> None:
    """One clip as H.264 mp4; a quarter turn in SECONDS, always the same way round."""
    count = round(SECONDS * scene.fps)
    with av.open(str(path), "w", format="mp4") as out:
        # One thread: x264 spreads its bits differently from run to run otherwise.
        stream: Any = out.add_stream("libx264", rate=scene.fps, options={"crf": "16", "preset": "fast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(count):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(draw(scene, math.pi / 2 * i / count), format="rgb24")))
        out.mux(stream.encode(None))


def prepare_demo(folder: Path, *, steps: int | None = None) -> Path:
    """Make what is missing of the demo in `folder`; returns the path of its job file.

    An existing job file is kept as it is, but for the numbers that follow from `steps` when that is given (40 in a new
    one). Raises UserError when something else lies in the way, or nothing can be written.
    """
    try:
        _write_files(folder)
    except OSError as e:
        raise UserError(
            f"cannot be written: {e.strerror or e}", where=str(folder), fix="Choose another folder"
        ) from None
    build_tiny(folder / "base")
    path = folder / "job.toml"
    if not path.exists():
        save_job(job_from_dict(_job(folder, steps or STEPS)), path)
    elif steps is not None:
        tables = job_to_dict(load_job(path))
        _set_steps(tables, steps)
        save_job(job_from_dict(tables), path)
    return path


def _files() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """(path in the demo's folder, what writes it) of every clip, caption and control image."""
    for scene in SCENES:
        yield f"clips/{scene.name}.mp4", lambda path, scene=scene: write_clip(path, scene)  # type: ignore[misc]
        yield f"clips/{scene.name}.txt", lambda path, scene=scene: path.write_text(scene.caption + "\n")  # type: ignore[misc]
    for scene in UNSEEN:
        yield (
            f"clips_control/{scene.name}.png",
            lambda path, scene=scene: Image.fromarray(draw(scene, 0.0)).save(path, "PNG"),  # type: ignore[misc]
        )


def _write_files(folder: Path) -> None:
    files = dict(_files())
    if foreign := sorted(
        p.name for p in (folder / "clips").glob("*") if f"clips/{p.name}" not in files and not p.name.startswith(".")
    ):
        raise UserError(
            f"holds files that are not the demo's ({', '.join(foreign[:3])})",
            where=str(folder / "clips"),
            fix="Choose another folder for the demo",
        )
    sizes = _read_manifest(folder)
    for name, write in files.items():
        path = folder / name
        if path.is_file() and sizes.get(name) == path.stat().st_size:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            write(aside)
        sizes[name] = path.stat().st_size
    write_file(folder / MANIFEST, (json.dumps({"version": VERSION, "sizes": sizes}, indent=2) + "\n").encode())


def _read_manifest(folder: Path) -> dict[str, int]:
    """Sizes of the files that an earlier run of the same version finished; {} when there was none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return dict(manifest["sizes"]) if manifest["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _job(folder: Path, steps: int) -> dict[str, Any]:
    """The motion preset for this machine and these clips, as tables, at the size of the tiny model."""
    clips = scan_dataset(DatasetPanel(path="clips"), 0, folder).clips
    tables = job_to_dict(recommend("motion", read_machine(folder), clips, name="demo_orbit", clips_path="clips").job)
    tables["model"]["path"] = "base"
    tables["quantization"] |= {"transformer": "none", "text_encoder": "none"}
    tables["training"] |= {"optimizer": "adamw", "lr": 9e-4}
    # with this rate, enough for 40 steps on random weights to show a falling loss
    tables["target"] |= {"rank": 4, "alpha": 32.0}
    tables["save"]["dtype"] = "fp32"
    tables["datasets"][0] |= {"num_frames": 9, "sampling": "realtime", "resolutions": [64]}
    tables["sample"] |= {"width": 64, "height": 48, "num_frames": 9, "steps": 4}
    tables["sample"]["prompts"] = [
        {"prompt": scene.caption, "ctrl_img": f"clips_control/{scene.name}.png"} for scene in UNSEEN
    ]
    _set_steps(tables, steps)
    return tables


def _set_steps(tables: dict[str, Any], steps: int) -> None:
    """Two checkpoints, each with previews, and several turns of both experts, however few steps there are."""
    half = max(1, math.ceil(steps / 2))
    tables["training"]["steps"] = steps
    tables["save"]["every"] = tables["sample"]["every"] = half
    tables["multistage"]["switch_every"] = min(5, half)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine.demo.make_demo", description="Write demo clips, a tiny base model and a job file."
    )
    parser.add_argument("dir", type=Path)
    parser.add_argument("--steps", type=int, help=f"training steps ({STEPS} in a new job file)")
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps < 1:
        parser.error("--steps: expected 1 or more")
    try:
        print(prepare_demo(args.dir, steps=args.steps))
    except UserError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
