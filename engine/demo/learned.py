"""What the demo's LoRA has learned: how near the objects of its previews come to their circle, before and after.

    python -m engine.demo.learned RUN

prints one line of JSON: `before` and `after`, the mean distance from the circle in widths of the picture, of the first
and the last set of previews, and `previews`, how many of a set are of the demo's own unseen objects. `null` where a run
has not two such sets. The tracking is engine.toy_base.motion's.
"""

import json
import statistics
import sys
from pathlib import Path

import av
import numpy as np
import torch
from msgspec import Struct

from engine.demo.make_demo import UNSEEN, Scene
from engine.toy_base.films import render
from engine.toy_base.motion import circling, path_error
from presets.job.resume_check import JOB_FILE
from presets.job.toml_file import load_job
from presets.runs.events import EVENTS_FILE, read_events


class Learned(Struct, frozen=True):
    """Distances in widths of the picture."""

    before: float
    after: float
    previews: int


def learned(run: Path) -> Learned | None:
    """Of a run of the demo's job. Raises UserError, OSError or av.FFmpegError when one of its files cannot be read."""
    scenes = {f"{scene.name}.png": scene for scene in UNSEEN}
    names = [Path(prompt.ctrl_img).name for prompt in load_job(run / JOB_FILE).sample.prompts]
    sets: dict[int, dict[str, Path]] = {}
    for event, _ in read_events(run / EVENTS_FILE):
        if event.kind == "sample":
            number = int(Path(event.data["path"]).stem)
            if number < len(names) and names[number] in scenes:
                sets.setdefault(event.data["step"], {})[names[number]] = run / event.data["path"]
    if len(sets) < 2:
        return None
    first, last = sets[min(sets)], sets[max(sets)]
    both = sorted(first.keys() & last.keys())
    if not both:
        return None

    def mean(made: dict[str, Path]) -> float:
        return round(statistics.mean(distance(made[name], scenes[name]) for name in both), 4)

    return Learned(mean(first), mean(last), len(both))


def distance(video: Path, scene: Scene) -> float:
    """Of the object in a preview from the way that it takes in the scene."""
    with av.open(str(video)) as container:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    drawn = circling([(scene.colour, scene.shape)], torch.Generator().manual_seed(scene.seed))
    _, places_BT2 = render(drawn)
    film = torch.from_numpy(pictures).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    frames = min(film.shape[2], places_BT2.shape[1])
    return path_error(film[:, :, :frames], drawn.colour_B, places_BT2[:, :frames]).item()


def main() -> int:
    found = learned(Path(sys.argv[1]))
    print(json.dumps(None if found is None else {name: getattr(found, name) for name in found.__struct_fields__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
