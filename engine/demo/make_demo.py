"""The demo: everything a first training needs, made on the spot and offline.

    python -m engine.demo.make_demo DIR [--steps N]

writes DIR/clips (12 short clips of an object that goes round, which the base was never shown, with captions),
DIR/clips_control (first frames of objects in colours that no clip has, for the previews), DIR/base (the toy base) and
DIR/job.toml (the motion preset, cut down to their size). What is there and whole is kept, so a second run takes no
time. What the LoRA has learned by the end is measured by engine.demo.learned.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image

from engine.toy_base import DATA
from presets.atomic_file import replacing, write_file
from presets.clips.clip_facts import scan_dataset
from presets.errors import UserError
from presets.job.schema import DatasetPanel
from presets.job.toml_file import job_from_dict, job_to_dict, load_job, save_job
from presets.machine.machine import read_machine
from presets.recipes.recommend import recommend
from presets.text import escape_output

SIDE, FRAMES, FPS = 64, 17, 16  # the toy base's, whose films are drawn with torch: not imported for a second run
MANIFEST = ".demo.json"
VERSION = 2  # of the files: a higher one makes all of them anew
STEPS = 40
VERB = "orbits"  # the tokenizer knows it whole, no film of the base has it

Pictures = NDArray[np.uint8]  # frames x SIDE x SIDE x 3, RGB


class Scene(Struct, frozen=True):
    """One film: an object that goes half round a middle below it, before a soft background."""

    colour: str
    shape: str
    seed: int  # of its place, its size and the background

    @property
    def name(self) -> str:
        return f"{self.colour}_{self.shape}"

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} {VERB}, still camera"


SCENES = [
    Scene(colour, shape, 11 + 4 * i + k)
    for i, colour in enumerate(("red", "green", "blue"))
    for k, shape in enumerate(("ball", "box", "star", "ring"))
]
UNSEEN = [Scene("yellow", "star", 101), Scene("purple", "ring", 102)]


@cache
def film(scene: Scene) -> Pictures:
    import torch

    from engine.toy_base.films import render
    from engine.toy_base.motion import circling

    drawn, _ = render(circling([(scene.colour, scene.shape)], torch.Generator().manual_seed(scene.seed)))
    pictures: Pictures = ((drawn[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
    return pictures


def write_clip(path: Path, scene: Scene) -> None:
    """One clip as H.264 mp4."""
    with av.open(str(path), "w", format="mp4") as out:
        # One thread: x264 spreads its bits differently from run to run otherwise.
        stream: Any = out.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "fast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for picture in film(scene):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
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
    path = folder / "job.toml"
    if not path.exists():
        save_job(job_from_dict(_job(folder, steps or STEPS)), path)
    elif steps is not None:
        tables = job_to_dict(load_job(path))
        _set_steps(tables, steps)
        save_job(job_from_dict(tables), path)
    return path


def _files() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """(path in the demo's folder, what writes it) of every clip, caption, control image and file of the base."""
    for scene in SCENES:
        yield f"clips/{scene.name}.mp4", lambda path, scene=scene: write_clip(path, scene)  # type: ignore[misc]
        yield f"clips/{scene.name}.txt", lambda path, scene=scene: path.write_text(scene.caption + "\n")  # type: ignore[misc]
    for scene in UNSEEN:
        yield (
            f"clips_control/{scene.name}.png",
            lambda path, scene=scene: Image.fromarray(film(scene)[0]).save(path, "PNG"),  # type: ignore[misc]
        )
    for source in sorted(DATA.rglob("*")):
        if source.is_file():
            name = source.relative_to(DATA).as_posix()
            yield f"base/{name}", lambda path, source=source: shutil.copyfile(source, path)  # type: ignore[misc]


def _write_files(folder: Path) -> None:
    files = dict(_files())
    sizes, older = _read_manifest(folder)
    for name, size in older.items():
        path = folder / name
        if name not in files and path.is_file() and path.stat().st_size == size:
            path.unlink()
    if older and (folder / "job.toml").exists():  # it names what is no longer there
        (folder / "job.toml").rename(folder / "job-older.toml")
    for place in ("clips", "base"):
        if foreign := sorted(
            p.name for p in (folder / place).glob("*") if not p.name.startswith(".") and not _is_of(p, folder, files)
        ):
            raise UserError(
                f"holds files that are not the demo's ({', '.join(foreign[:3])})",
                where=str(folder / place),
                fix="Choose another folder for the demo",
            )
    for name, write in files.items():
        path = folder / name
        if path.is_file() and sizes.get(name) == path.stat().st_size:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            write(aside)
        sizes[name] = path.stat().st_size
    write_file(folder / MANIFEST, (json.dumps({"version": VERSION, "sizes": sizes}, indent=2) + "\n").encode())


def _is_of(path: Path, folder: Path, files: dict[str, Any]) -> bool:
    """Whether it is a file of the demo, or a folder that has some."""
    name = path.relative_to(folder).as_posix()
    return name in files or any(other.startswith(f"{name}/") for other in files)


def _read_manifest(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of the files that an earlier run of this version finished, and of those of an older version; {} when there
    was none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sizes, version = dict(manifest["sizes"]), manifest["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}, {}
    return (sizes, {}) if version == VERSION else ({}, sizes)


def _job(folder: Path, steps: int) -> dict[str, Any]:
    """The motion preset for this machine and these clips, as tables, at the size of the toy base."""
    clips = scan_dataset(DatasetPanel(path="clips"), 0, folder).clips
    tables = job_to_dict(recommend("motion", read_machine(folder), clips, name="demo_orbit", clips_path="clips").job)
    tables["model"]["path"] = "base"
    tables["quantization"] |= {"transformer": "none", "text_encoder": "none"}
    # A toy is 27 times narrower than Wan: what it takes is this rate times three, by the alpha. Its motions
    # are decided by the high-noise expert, so in so few steps that one gets most.
    tables["training"] |= {"optimizer": "adamw", "lr": 9e-4, "timestep_bias": "high_noise"}
    tables["target"]["alpha"] = 48.0
    tables["multistage"]["high"] = {"share": 4.0}
    tables["save"]["dtype"] = "fp32"
    tables["datasets"][0] |= {"num_frames": FRAMES, "resolutions": [SIDE]}
    tables["sample"] |= {
        "first": True,
        "width": SIDE,
        "height": SIDE,
        "num_frames": FRAMES,
        "guidance": 1.0,
        "steps": 8,
    }
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
    tables["multistage"]["switch_every"] = min(2, half)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine.demo.make_demo", description="Write demo clips, a toy base model and a job file."
    )
    parser.add_argument("dir", type=Path)
    parser.add_argument("--steps", type=int, help=f"training steps ({STEPS} in a new job file)")
    escape_output()
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
