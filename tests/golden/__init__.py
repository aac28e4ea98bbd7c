"""Golden curves: the losses of 100 steps on the tiny base, one file per objective, and what the LoRA has become by
then. And those of the toy base, which has something to learn from: its clips are the demo's.

They catch what no formula's own test sees: a change anywhere between a clip's file and the optimizer that alters what
is learnt. CPU kernels differ in their last bits among machines, and Adam carries such a difference along, so curves are
compared within TOLERANCE, not to the bit. `python -m tests.golden` (`make golden`) makes them anew and shows by how
much they differ from those committed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from engine.demo.make_demo import FRAMES, SCENES, film
from engine.run import run_job
from engine.toy_base import DATA
from presets.job.schema import DatasetPanel, Job
from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers.jobs import of_kind, write_job
from tests.helpers.videos import numbered, write_clip

FOLDER = Path(__file__).parent
STEPS, SHORT = 100, 20
FIRST = {"toy": 6, "dop": 8, "regularization": 8}  # steps of a curve that `make test` replays, where they are not SHORT
TOLERANCE = 2e-3  # relative
CURVES: dict[str, dict[str, Any]] = {  # changed fields
    "plain": {},
    "dop": {"training.dop": True, "training.dop_multiplier": 0.5, "job.trigger": "frung"},
    "guidance": {"advanced.differential_guidance": True, "training.max_grad_norm": 0.0},
    "regularization": {},
    "ema": {"training.ema": True, "training.ema_decay": 0.9},
    "bpp": {"training.blank_prompt_preservation": True},
    "toy": {"datasets[0].num_frames": 9},
}


def curve(name: str, steps: int, folder: Path, tiny: Path) -> dict[str, Any]:
    """Train `steps` steps; the losses by term (0 where a step has none), and the norm of each expert's LoRA (the
    running average, when there is one) after SHORT and all steps."""
    path = write_job(
        folder,
        DATA if name == "toy" else tiny,
        prompts=0,
        clips=0,
        steps=steps,
        lr=1e-3,
        save={"every": SHORT, "keep": 100, "dtype": "fp32"},
        dataset={"caption_dropout": 0.2, "flip_x": True},
    )
    if name == "toy":
        for scene in SCENES[:3]:
            write_clip(
                folder / "clips" / f"{scene.name}.mkv",
                frames=FRAMES,
                fps=16.0,
                codec="ffv1",
                picture=lambda n, scene=scene: film(scene)[n],
            )  # type: ignore[misc]
            (folder / "clips" / f"{scene.name}.txt").write_text(scene.caption)
    for place, colour in (("clips", 0), ("kept", 128)) if name != "toy" else ():
        (folder / place).mkdir(exist_ok=True)
        for i in range(3):
            # Losslessly, so that every machine trains on the same pixels.
            write_clip(
                folder / place / f"{i}.mkv",
                frames=12,
                fps=16.0,
                codec="ffv1",
                picture=lambda n, i=i, colour=colour: np.roll(numbered(n, 64, 48) + np.uint8(colour), 5 * i, axis=1),
            )  # type: ignore[misc]
            (folder / place / f"{i}.txt").write_text(
                f"orbit number {i} [trigger]" if place == "clips" else f"a view {i}"
            )
    job: Job = load_job(path)
    if name == "regularization":
        job.datasets.append(DatasetPanel(path="kept", regularization=True, num_frames=5, resolutions=[64]))
    for field, value in CURVES[name].items():
        job = with_value(job, field, value)
    save_job(job, path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums come in one order, whatever the number of cores
    try:
        assert run_job(path, None, resume=False, workers=0, device="cpu") == 0
    finally:
        torch.set_num_threads(threads)
    run = folder / "runs" / "t"
    told = of_kind(run, "step")
    assert len(told) == steps
    norms = {
        str(at): {e: norm(run / f"t_{at:09d}_{e}.safetensors") for e in ("high_noise", "low_noise")}
        for at in sorted({min(SHORT, steps), steps})
    }
    return {
        "losses": {
            term: [float(f"{d['parts'].get(term, 0):.6g}") for d in told]
            for term in sorted({term for d in told for term in d["parts"]})
        },
        "lora": norms,
    }


def norm(path: Path) -> float:
    """Of the half that begins at 0."""
    halves = [v for k, v in load_file(path).items() if "lora_B" in k or "lora_up" in k]
    return float(f"{sum(float(v.double().square().sum()) for v in halves) ** 0.5:.6g}")


def committed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def deviation(mine: dict[str, Any], golden: dict[str, Any]) -> float:
    """The largest relative difference of any number that both have: losses against the mean of their curve, norms
    against themselves."""
    out = 0.0
    assert mine["losses"].keys() == golden["losses"].keys(), (mine["losses"].keys(), golden["losses"].keys())
    for term, losses in mine["losses"].items():
        wanted = golden["losses"][term][: len(losses)]
        scale = sum(abs(v) for v in golden["losses"][term]) / len(golden["losses"][term])
        out = max([out, *(abs(a - b) / scale for a, b in zip(losses, wanted, strict=True))])
    for step in mine["lora"].keys() & golden["lora"].keys():
        out = max([out, *(abs(mine["lora"][step][e] - value) / value for e, value in golden["lora"][step].items())])
    return out
