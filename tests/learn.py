"""`make learn`: does the trainer still teach a LoRA the right thing? Trainings on the toy base, with bounds that a
broken trainer fails; and the same with a trainer that is broken on purpose, in six ways, each of which must be caught.

    python -m tests.learn [--break NAME ...] [--only known|learned] [--steps N] [--seed N] [--at-once N]

Twelve clips teach two words that the base was never shown: what `orbits` goes round to the right, what `jumps` to the
left. Measured are: the base's own loss on its own films, as the trainer computes it (`known`); how far the objects of
previews are from the way that the caption says, from first frames in colours that no clip has (`path`, in widths of the
picture; standing still is 0.19, the wrong word 0.3); and the loss on held-out clips with the LoRA, in parts of the
base's, at the same noise (`held out`, by a trainer that is whole). Exit code 0: the trainer keeps all bounds, and each
broken one fails at least one of them. The films and the tracking are engine.toy_base's. As many trainers work at
once as there are cores, each in a process with one thread, and each process encodes a clip once.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.loader import Batch
from engine.executor.block_executor import BlockExecutor
from engine.preview.video_files import write_video
from engine.run import run_job
from engine.system.keyed_random import keyed_rng
from engine.toy_base import DATA
from engine.toy_base.films import FRAMES, MOTIONS, SIDE, Scene, render
from engine.toy_base.motion import circling, path_error, standing
from engine.training import objective, train_step
from presets.job.expert_schedule import EXPERTS, Expert
from presets.job.toml_file import job_from_dict, save_job
from presets.runs.events import read_events

VERBS = {"orbits": 1.0, "jumps": -1.0}  # which way round; the tokenizer knows both whole
TRAINED = [(colour, shape) for colour in ("red", "green", "blue") for shape in ("ball", "box")]
HELD_OUT = [(colour, shape) for colour in ("yellow", "purple", "orange") for shape in ("ring",)]
ASKED = [("yellow", "star"), ("purple", "ring")]  # of previews: the same first frame for both words
KNOWN_FRAMES, KNOWN_STEPS = 9, 10
SEEDS = {"clips": 11, "held": 13, "first": 12, "known": 14}
STEPS = 100
NO_RATE = 1e-12  # nothing is learned, only measured

# measure -> the most that it may be: without training, and with it
KNOWN = {"known, high": 0.3, "known, low": 0.25}
LEARNED = {"path": 0.12, "held out, high": 0.4, "held out, low": 0.9}
Pair = tuple[torch.Tensor, torch.Tensor]
_encoded: dict[Any, Pair] = {}
_latents_of = objective.latents_of


# --- the ways to break it: patches of this program alone


def remembered(encoder: Any, batch: Batch, cache: Any, *, device: torch.device) -> Pair:
    """`latents_of`, each clip encoded once."""
    for i, draw in enumerate(batch.draws):
        if draw.request not in _encoded:
            alone = replace(batch, draws=[draw], frames=batch.frames[i : i + 1])
            _encoded[draw.request] = _latents_of(encoder, alone, cache, device=device)
    pairs = [_encoded[draw.request] for draw in batch.draws]
    return torch.cat([x0 for x0, _ in pairs]), torch.cat([given for _, given in pairs])


def wrong_sign(patch: pytest.MonkeyPatch) -> None:
    noised = objective.noised

    def backwards(x0: torch.Tensor, noise: torch.Tensor, sigma_B: torch.Tensor) -> Pair:
        x_t, velocity = noised(x0, noise, sigma_B)
        return x_t, -velocity

    patch.setattr(objective, "noised", backwards)


def experts_swapped(patch: pytest.MonkeyPatch) -> None:
    """Each expert is trained at the other's noise."""
    draw_sigma = objective.draw_sigma

    def of_the_other(job: Any, expert: Expert, boundary: float, *key: int | str) -> float:
        return draw_sigma(job, EXPERTS[expert == EXPERTS[0]], boundary, *key)

    patch.setattr(objective, "draw_sigma", of_the_other)


def conditioning_dropped(patch: pytest.MonkeyPatch) -> None:
    """The first frame is not shown."""

    def blind(*args: Any, **kwargs: Any) -> Pair:
        x0, given = remembered(*args, **kwargs)
        return x0, torch.zeros_like(given)

    patch.setattr(objective, "latents_of", blind)


def one_expert(patch: pytest.MonkeyPatch) -> None:
    """Each step is the high-noise expert's."""
    patch.setattr(train_step, "expert_at", lambda job, step: EXPERTS[0])


def captions_shuffled(patch: pytest.MonkeyPatch) -> None:
    """A visit's caption is that of any clip."""
    spoken: list[str] = []

    def of_any(batch: Batch) -> list[str]:
        spoken.extend(draw.caption for draw in batch.draws if draw.caption not in spoken)
        rngs = [keyed_rng(0, "shuffle", *draw.key) for draw in batch.draws]
        return [spoken[int(rng.integers(len(spoken)))] for rng in rngs]

    patch.setattr(Batch, "captions", property(of_any))


def no_gradient(patch: pytest.MonkeyPatch) -> None:
    """Blocks that are recomputed hand on zeros, as once on a card: losses and steps look as ever, nothing learns. The
    trainer's own look at gradients is left out, for what is learned has to show it by itself."""
    backward = BlockExecutor._backward_block

    def of_zeros(self: Any, weights: Any, x: Any, a: Any, lse: Any, g: torch.Tensor, *given: Any) -> None:
        backward(self, weights, x, a, lse, g.zero_(), *given)

    patch.setattr(BlockExecutor, "_backward_block", of_zeros)
    patch.setattr(train_step, "require_gradients", lambda *_: None)


BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "wrong-sign": wrong_sign,
    "experts-swapped": experts_swapped,
    "conditioning-dropped": conditioning_dropped,
    "one-expert": one_expert,
    "captions-shuffled": captions_shuffled,
    "no-gradient": no_gradient,
}
BY_LEARNING = {"no-gradient"}  # what only shows in what is learned


@contextmanager
def broken(name: str) -> Iterator[None]:
    """Inside, the trainer of this process is broken so; "" for not at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "latents_of", remembered)
        if name:
            BREAKS[name](patch)
        yield


# --- what it trains on


def going_round(looks: list[tuple[str, str]], seed: int, verb: str) -> Scene:
    scene = circling(looks, torch.Generator().manual_seed(seed))
    assert scene.path_BT2 is not None
    return replace(scene, path_BT2=scene.path_BT2 * torch.tensor([VERBS[verb], 1.0]))


def write_films(folder: Path, scene: Scene, captions: list[str], prefix: str, frames: int = FRAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    film, _ = render(scene, frames)
    for i, (pictures, caption) in enumerate(zip(as_pictures(film), captions, strict=True)):
        write_video(folder / f"{prefix}{i}.mp4", pictures, 16)
        (folder / f"{prefix}{i}.txt").write_text(caption)


def as_pictures(film: torch.Tensor) -> np.ndarray:
    return ((film + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()


def write_data(folder: Path) -> None:
    for number, verb in enumerate(VERBS):
        for place, looks in (("clips", TRAINED), ("held", HELD_OUT)):
            captions = [f"a {colour} {shape} {verb}, still camera" for colour, shape in looks]
            write_films(folder / place, going_round(looks, SEEDS[place] + number, verb), captions, f"{verb}_")
    write_known(folder / "known")
    first, _ = render(going_round(ASKED, SEEDS["first"], "orbits"), 1)
    for i, pictures in enumerate(as_pictures(first)):
        Image.fromarray(pictures[0]).save(folder / f"first_{i}.png")


def write_known(folder: Path) -> None:
    """A film of each of the base's own motions."""
    generator = torch.Generator().manual_seed(SEEDS["known"])
    for motion, look in zip(MOTIONS, TRAINED, strict=False):
        captions = [f"a {' '.join(look)} {motion}, still camera"]
        prefix = f"{motion.replace(' ', '_')}_"
        write_films(folder, standing([look], generator, motion), captions, prefix, KNOWN_FRAMES)


# --- trainings


def train(
    folder: Path, name: str, clips: str, steps: int, seed: int, *, frames: int = FRAMES, **changes: dict[str, Any]
) -> Path:
    """One job from its file to its end; returns the run folder."""
    tables: dict[str, Any] = {
        "job": {"name": name, "seed": seed},
        "model": {"path": str(DATA)},
        "quantization": {"transformer": "none", "text_encoder": "none"},
        "multistage": {"switch_every": 1},
        "save": {"every": steps, "dtype": "fp32"},
        "training": {"steps": steps, "lr": NO_RATE},
        "datasets": [{"path": clips, "num_frames": frames, "resolutions": [SIDE], "caption_dropout": 0.0}],
        "sample": {"every": steps, "first": False},
    }
    for panel, values in changes.items():
        tables[panel] = tables.get(panel, {}) | values
    path = folder / f"{name}.toml"
    save_job(job_from_dict(tables), path)
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        code = run_job(path, None, resume=False, workers=0, device="cpu")
    run = folder / "runs" / name
    if code:
        *_, last = (event for event, _ in read_events(run / "events.jsonl"))
        raise RuntimeError(f"{name}: exit code {code}: {last.data}")
    return run


def losses(run: Path) -> dict[str, float]:
    """Mean loss of each expert's steps; of one that had none, without an end."""
    told: dict[str, list[float]] = {expert: [] for expert in EXPERTS}
    for event, _ in read_events(run / "events.jsonl"):
        if event.kind == "step":
            told[event.data["expert"]].append(event.data["loss"])
    return {expert: statistics.mean(found) if found else math.inf for expert, found in told.items()}


def known(folder: Path, name: str, seed: int = 1) -> dict[str, float]:
    """The loss on the base's own films, as the trainer that is broken in the way of this name computes it; "" for a
    whole one."""
    with broken(name):
        run = train(folder, f"known_{name or 'whole'}", "known", KNOWN_STEPS, seed, frames=KNOWN_FRAMES)
    found = losses(run)
    return {"known, high": found["high_noise"], "known, low": found["low_noise"]}


def taught(folder: Path, name: str, steps: int, seed: int) -> Path:
    """Train the two words, with previews at the end."""
    prompts = [
        {"prompt": f"a {colour} {shape} {verb}, still camera", "ctrl_img": f"first_{i}.png"}
        for verb in VERBS
        for i, (colour, shape) in enumerate(ASKED)
    ]
    size = {"width": SIDE, "height": SIDE, "num_frames": FRAMES, "guidance": 1.0, "steps": 8}
    return train(
        folder,
        f"taught_{name}",
        "clips",
        steps,
        seed,
        training={"steps": steps, "lr": 2e-3, "timestep_bias": "high_noise"},
        multistage={"switch_every": 2, "high": {"share": 2.0}},
        sample={"every": steps, "first": False, "prompts": prompts, **size},
    )


def path(run: Path) -> dict[str, float]:
    made = [run / event.data["path"] for event, _ in read_events(run / "events.jsonl") if event.kind == "sample"]
    found = []
    for number, verb in enumerate(VERBS):
        scene = going_round(ASKED, SEEDS["first"], verb)
        _, places = render(scene)
        files = made[number * len(ASKED) :][: len(ASKED)]
        found += path_error(torch.cat([read(file) for file in files]), scene.colour_B, places).tolist()
    return {"path": statistics.mean(found)}


def read(video: Path) -> torch.Tensor:
    with av.open(str(video)) as container:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return torch.from_numpy(pictures).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def held_out(folder: Path, name: str, run: Path | None, seed: int) -> dict[str, float]:
    """Each expert's loss on clips that it was not shown, with the LoRA of a run or without."""
    starts = {} if run is None else {"start_high": str(run), "start_low": str(run)}
    return losses(train(folder, f"held_{name}", "held", 24, seed, target=starts))


def of_base(folder: Path, seed: int) -> dict[str, float]:
    with broken(""):
        return held_out(folder, "base", None, seed)


def learned(folder: Path, name: str, steps: int, seed: int, base: dict[str, float]) -> dict[str, float]:
    """What a LoRA of such a trainer has learned."""
    with broken(name):
        run = taught(folder, name or "whole", steps, seed)
    with broken(""):
        loss = held_out(folder, name or "whole", run, seed)
    ratio = {expert: loss[expert] / base[expert] for expert in EXPERTS}
    return path(run) | {"held out, high": ratio["high_noise"], "held out, low": ratio["low_noise"]}


def over(found: dict[str, float], bounds: dict[str, float]) -> list[str]:
    """The measures that are not within their bounds; one that is no number is not."""
    return [name for name, most in bounds.items() if not found[name] <= most]


def timed(measure: Callable[[str], dict[str, float]], name: str) -> tuple[dict[str, float], float]:
    began = time.monotonic()
    return measure(name), time.monotonic() - began


def table(
    pool: Executor, names: list[str], bounds: dict[str, float], measure: Callable[[str], dict[str, float]]
) -> dict[str, bool]:
    """Print a line for each trainer; which of them fail."""
    print(f"| trainer | {' | '.join(bounds)} | fails | seconds |\n|{'---|' * (len(bounds) + 3)}")
    print(f"| at most | {' | '.join(f'{most:g}' for most in bounds.values())} | | |", flush=True)
    caught = {}
    for name, (found, seconds) in zip(names, pool.map(partial(timed, measure), names), strict=True):
        fails = over(found, bounds)
        caught[name] = bool(fails)
        figures = " | ".join(f"{found[key]:.3f}" for key in bounds)
        told = ", ".join(fails) or "nothing"
        print(f"| {name or 'whole'} | {figures} | {told} | {seconds:.0f} |", flush=True)
    print()
    return caught


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.learn", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--break", dest="breaks", nargs="*", choices=BREAKS, default=list(BREAKS), metavar="NAME")
    parser.add_argument("--only", choices=["known", "learned"], help="one of the two tables")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=min(len(os.sched_getaffinity(0)), 1 + len(BREAKS)))
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in ["", *args.breaks] if args.only != "known" or name not in BY_LEARNING]
    fresh = get_context("spawn")  # a process that has trained must not be forked
    with (
        tempfile.TemporaryDirectory(prefix="wllearn") as scratch,
        ProcessPoolExecutor(args.at_once, fresh, torch.set_num_threads, (1,)) as pool,
    ):
        folder = Path(scratch)
        write_data(folder)
        caught = dict.fromkeys(names, False)
        if args.only != "learned":
            caught |= table(
                pool, [name for name in names if name not in BY_LEARNING], KNOWN, partial(known, folder, seed=args.seed)
            )
        if args.only != "known":
            base = pool.submit(of_base, folder, args.seed).result()
            teach = partial(learned, folder, steps=args.steps, seed=args.seed, base=base)
            also = table(pool, names, LEARNED, teach)
            caught = {name: caught[name] or also[name] for name in names}
    missed = [name for name in names[1:] if not caught[name]]
    for name in missed:
        print(f"{name}: not caught", file=sys.stderr)
    if caught[""]:
        print("the trainer does not keep the bounds", file=sys.stderr)
    return int(bool(missed) or caught[""])


if __name__ == "__main__":
    sys.exit(main())
