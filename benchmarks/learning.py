"""Whether LoRAs learn, and what the settings do to that: trainings on the toy base of a motion that it was never shown.

    python -m benchmarks.learning DIR [--tables plain@1e-4,1e-3 rank ...] [--seeds 1 2 3] [--steps N] [--at-once N]
    python -m benchmarks.learning DIR --show FILE ...
    python -m benchmarks.learning DIR --vae [--turns N]

Twelve clips of objects that go round, real video files with captions, are trained on by whole jobs through the
trainer's own entry. Its previews start from first frames of other colours and shapes and are read back from the files
it leaves: how far the object is from the circle that was wanted, what captions of the base's own motions still do, and
how the object looks. Previews of step 0 are the base's.

A table's variants are trained at each learning rate that its name is given with. Each row of FILE (DIR/rows.jsonl) is
one set of previews of one run, with the plan that it ran under. DIR keeps the clips and runs; what was begun there is
not begun again, nor what has its last row in FILE already, also one of another machine. `--show` prints the tables of
rows that are there already, `--vae` what the base's VAE alone gives back of the films that are wanted: no LoRA can come
nearer. Errors are in widths of the picture; `films` and `motion` of the toy base say what is drawn and measured.

A toy is not compiled, and all its weights stay on the device. The tables `plan` and `compiled` train it as the real
base is, under each kind of plan and in each precision: nothing else shows that what the compiler makes on a card
learns.

A clip's latents are remembered while a job trains, where it is drawn alike at each visit: a job here encodes each clip
once. That is the benchmark's doing, not the trainer's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

from benchmarks.learning_tables import ADAPTER, ATTENTION, PLAN, PLANS, TABLES, Changes, Row, show, variants
from engine.data.frames import DecodeRequest
from engine.data.loader import Batch
from engine.memory.planning import ANYWHERE, Planning, plan_run
from engine.preview.video_files import write_video
from engine.toy_base import DATA
from engine.toy_base.clip_vae import decode, encode, flat_convolutions
from engine.toy_base.films import FRAMES, MOTIONS, SIDE, Scene, render
from engine.toy_base.motion import TURNS, circling, look, path_error, standing, turned
from engine.training import objective, prepare
from engine.wan import attention
from presets.job.toml_file import job_from_dict, save_job
from presets.runs.events import read_events

VERB = "circles"  # the trigger word: the tokenizer knows it whole, no film of the base has it
TRAINED = [(colour, shape) for colour in ("red", "green", "blue") for shape in ("ball", "box")] * 2
UNSEEN = [(colour, shape) for colour in ("yellow", "purple", "orange") for shape in ("star", "ring")]
# What the base knows, to see whether it still does.
STRAIGHT = [("moves left", UNSEEN[0]), ("moves up", UNSEEN[3]), ("moves right", UNSEEN[4])]
GRACE = 15.0  # seconds to save and measure
NEAR = 0.05  # widths: a preview whose object is nearer than this to its circle goes round
CLIP_SEED, UNSEEN_SEED = 11, 12
Pair = tuple[torch.Tensor, torch.Tensor]  # latents and conditioning


def write_data(folder: Path, turns: float) -> None:
    """The clips with their captions, and the first frames of the previews. What is there stays."""
    if (folder / "first").exists():
        return
    generator = torch.Generator().manual_seed(CLIP_SEED)
    film, _ = render(circling(TRAINED, generator, turns))
    write_clips(folder / "clips", film, [f"a {colour} {shape} [trigger], still camera" for colour, shape in TRAINED])
    known = [(motion, looks) for motion, looks in zip(list(MOTIONS) * 3, TRAINED, strict=False)]
    film = torch.cat([render(standing([looks], generator, motion))[0] for motion, looks in known])
    write_clips(folder / "known", film, [f"a {' '.join(looks)} {motion}, still camera" for motion, looks in known])
    (folder / "first.part").mkdir()
    for number, (scene, _) in enumerate(asked(turns)):
        Image.fromarray(as_pictures(render(scene, 1)[0])[0, 0]).save(folder / "first.part" / f"{number:02}.png")
    (folder / "first.part").rename(folder / "first")


def write_clips(folder: Path, film: torch.Tensor, captions: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (pictures, caption) in enumerate(zip(as_pictures(film), captions, strict=True)):
        write_video(folder / f"{number:02}.mp4", pictures, 16)
        (folder / f"{number:02}.txt").write_text(caption + "\n")


def as_pictures(film: torch.Tensor) -> np.ndarray:
    """Films (B, 3, T, S, S) in -1..1 as uint8 (B, T, S, S, 3)."""
    return ((film + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()


def asked(turns: float) -> list[tuple[Scene, str]]:
    """What each preview should show, one film each, and its prompt: circles first, then the base's own motions."""
    circles = circling(UNSEEN, torch.Generator().manual_seed(UNSEEN_SEED), turns)
    found = [
        (part(circles, i), f"a {colour} {shape} [trigger], still camera") for i, (colour, shape) in enumerate(UNSEEN)
    ]
    for i, (motion, (colour, shape)) in enumerate(STRAIGHT):
        scene = standing([(colour, shape)], torch.Generator().manual_seed(UNSEEN_SEED + 1 + i), motion)
        found.append((scene, f"a {colour} {shape} {motion}, still camera"))
    return found


def part(scene: Scene, i: int) -> Scene:
    """Film `i` of a scene, alone."""
    values: dict[str, Any] = {k: None if value is None else value[i : i + 1] for k, value in vars(scene).items()}
    return Scene(**values)


def job_tables(name: str, seed: int, steps: int, every: int) -> dict[str, Any]:
    """The motion recipe at the size of the toy base; previews without guidance, as the base was made for."""
    prompts = [{"prompt": text, "ctrl_img": f"first/{i:02}.png"} for i, (_, text) in enumerate(asked(TURNS))]
    return {
        "job": {"name": name, "trigger": VERB, "seed": seed},
        "model": {"path": str(DATA)},
        "quantization": {"transformer": "none", "text_encoder": "none"},
        "save": {"every": steps, "dtype": "fp32"},
        "training": {"steps": steps},
        "datasets": [{"path": "clips", "num_frames": FRAMES, "resolutions": [SIDE]}],
        "sample": {
            "every": every, "first": False, "width": SIDE, "height": SIDE, "num_frames": FRAMES,
            "guidance": 1.0, "steps": 20, "prompts": prompts,
        },
    }  # fmt: skip


def with_changes(tables: dict[str, Any], changes: Changes) -> dict[str, Any]:
    for path, value in changes.items():
        *tops, last = path.split(".")
        place: Any = tables
        for top in tops:
            place = place[int(top)] if isinstance(place, list) else place.setdefault(top, {})
        if isinstance(place, list):
            place.append(value)
        else:
            place[last] = value
    return tables


def name_of(changes: Changes, seed: int) -> str:
    """Of the run with these changes: the same for a variant that stands in several tables."""
    told = [
        f"{path.rpartition('.')[2]}-{value['path'] if isinstance(value, dict) else value}"
        for path, value in sorted(changes.items())
    ]
    return "_".join([*told, f"seed-{seed}"]).replace("+", "-and-")


def write_jobs(folder: Path, tables: list[str], seeds: list[int], steps: int, every: int, done: set[str]) -> list[Path]:
    """One job file for each variant and seed that is not `done`, the changes beside it; a seed's come before those of
    the next."""
    runs = {
        name_of(changes, seed): (changes, seed) for seed in seeds for table in tables for _, changes in variants(table)
    }
    paths = []
    for number, (name, (changes, seed)) in enumerate(runs.items()):
        if name in done:
            continue
        fields = {field: value for field, value in changes.items() if field not in (ATTENTION, PLAN)}
        tables_of_job = with_changes(job_tables(name, seed, steps, every), fields)
        tables_of_job["sample"]["first"] = number == 0 or (seed == seeds[0] and "quantization.transformer" in changes)
        paths.append(folder / f"{name}.toml")
        save_job(job_from_dict(tables_of_job), paths[-1])
        paths[-1].with_suffix(".json").write_text(json.dumps({"changes": changes, "seed": seed}))
        if fields.get("quantization.ara") == ADAPTER and not (folder / ADAPTER).exists():
            recovery = ["engine.recovery", str(DATA), "--rank", "16", "--out", str(folder / ADAPTER)]
            subprocess.run([sys.executable, "-m", *recovery], stdout=subprocess.DEVNULL, check=True)
    return paths


def work(folder: Path, jobs: list[str], rows: Path, turns: float) -> None:
    """Train the jobs that no other process has begun, and measure their previews."""
    from engine.run import RESUMABLE, run_job

    torch.set_num_threads(1)
    on_gpu = torch.cuda.is_available()
    # The planner holds a toy in bf16 where float8 is asked for, since no CPU computes it. Here the card is to.
    if on_gpu:
        ANYWHERE["float8"] = "float8"
    choose, encode_clips = attention.choose, objective.latents_of
    for name in jobs:
        path = folder / f"{name}.toml"
        try:
            path.with_suffix(".begun").touch(exist_ok=False)
        except FileExistsError:
            continue
        told = json.loads(path.with_suffix(".json").read_text())
        kernel = told["changes"].get(ATTENTION)
        vars(attention)["choose"] = only(kernel) if kernel and on_gpu else choose
        plan = told["changes"].get(PLAN)
        vars(prepare)["plan_run"] = held_as(plan) if plan else plan_run
        vars(objective)["latents_of"] = remembered(encode_clips)
        code = run_job(path, None, resume=False, workers=1)
        with rows.open("a") as out:
            out.write("".join(json.dumps({**told, **row}) + "\n" for row in measured(folder / "runs" / name, turns)))
        if code:
            print(f"{name}: exit code {code}", flush=True)
        if code == RESUMABLE:  # the time is over
            return


def only(kernel: str) -> Callable[..., tuple[attention.Attention, str]]:
    """In place of the choice of the fastest kernel."""

    def choose(*_: object, deterministic: bool, **__: object) -> tuple[attention.Attention, str]:
        return attention.Attention(kernel, kernel, deterministic, kernel, kernel), "asked for"

    return choose


def held_as(name: str) -> Callable[..., Planning]:
    """In place of `plan_run`, which has no toy compiled."""

    def planned(*args: Any, **kwargs: Any) -> Planning:
        found = plan_run(*args, **kwargs)
        return replace(found, plan=msgspec.structs.replace(found.plan, compiled=True, **PLANS[name]))

    return planned


def remembered(encode_clips: Callable[..., Pair]) -> Callable[..., Pair]:
    """`latents_of`, each draw encoded alone and once."""
    found: dict[DecodeRequest, Pair] = {}

    def latents_of(encoder: Any, batch: Batch, cache: Any, *, device: torch.device) -> Pair:
        for i, drawn in enumerate(batch.draws):
            if drawn.request not in found:
                alone = replace(batch, draws=[drawn], frames=batch.frames[i : i + 1])
                found[drawn.request] = encode_clips(encoder, alone, cache, device=device)
        pairs = [found[drawn.request] for drawn in batch.draws]
        return torch.cat([x0 for x0, _ in pairs]), torch.cat([given for _, given in pairs])

    return latents_of


def measured(run: Path, turns: float) -> list[Row]:
    """One row for each whole set of previews that a run has left."""
    events = [event for event, _ in read_events(run / "events.jsonl")]
    pace = [event.data["seconds"]["total"] for event in events if event.kind == "step"]
    made: dict[int, dict[int, Path]] = defaultdict(dict)
    for event in events:
        if event.kind == "sample":
            made[event.data["step"]][int(Path(event.data["path"]).stem)] = run / event.data["path"]
    wanted = asked(turns)
    plan = next((event.data["plan"] for event in events if event.kind == "started"), "")
    common = {"plan_text": plan, "seconds_per_step": round(statistics.median(pace), 4) if pace else None}
    return [
        {**common, "step": step, **scores([read_video(files[i]) for i in range(len(wanted))], wanted)}
        for step, files in sorted(made.items())
        if len(files) == len(wanted)
    ]


def read_video(path: Path) -> torch.Tensor:
    """A film (1, 3, T, S, S) in -1..1 from a video file."""
    with av.open(str(path)) as container:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return torch.from_numpy(pictures).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def scores(videos: list[torch.Tensor], wanted: list[tuple[Scene, str]]) -> Row:
    """Of one set of previews against what they should show."""
    found = []
    for video, (scene, _) in zip(videos, wanted, strict=True):
        _, places = render(scene)
        found.append(
            {
                "error": path_error(video, scene.colour_B, places).item(),
                "look": look(video, scene).item(),
                "turns": turned(video, scene.colour_B, scene.start_B2).item(),
            }
        )
    circles, straight = found[: len(UNSEEN)], found[len(UNSEEN) :]
    return {
        "circle_error": round(statistics.mean(each["error"] for each in circles), 4),
        "circle_errors": [round(each["error"], 3) for each in circles],
        "near": sum(each["error"] < NEAR for each in circles),
        "turns": round(statistics.median(each["turns"] for each in circles), 3),
        "look": round(statistics.mean(each["look"] for each in circles), 2),
        "straight_error": round(statistics.mean(each["error"] for each in straight), 4),
        "straight_look": round(statistics.mean(each["look"] for each in straight), 2),
    }


def train(folder: Path, jobs: list[Path], at_once: int, rows: Path, turns: float, end: float | None) -> None:
    """All jobs, by so many processes, spread over the cards. At the time `end` what still trains is stopped and
    measured as far as it came; what is not done GRACE seconds later is ended."""
    names, cards = [path.stem for path in jobs], torch.cuda.device_count()
    command = [
        sys.executable,
        "-m",
        "benchmarks.learning",
        str(folder),
        "--rows",
        str(rows),
        "--turns",
        str(turns),
        "--work",
        *names,
    ]
    began = time.time()
    workers = []
    for number in range(min(at_once, len(names))):
        log = (folder / f"worker-{number:02}.log").open("w")
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": str(number % cards)} if cards else None
        workers.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):
            worker.wait(None if end is None else max(0, end - time.time()))
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):  # between two jobs nobody hears that it is to stop
            worker.wait(None if end is None else max(0, end + GRACE - time.time()))
        worker.kill()
        worker.wait()
    print(f"{len(names)} jobs in {time.time() - began:.0f} s", flush=True)


@torch.no_grad()
def through_the_vae(wanted: list[tuple[Scene, str]]) -> Row:
    """Scores of the wanted films as the base's VAE gives them back."""
    vae = AutoencoderKLWan.from_pretrained(DATA / "vae", torch_dtype=torch.float32)
    with flat_convolutions():
        films = [decode(vae, encode(vae, render(scene)[0])[:, :16]).clamp(-1, 1) for scene, _ in wanted]
    return scores(films, wanted)


def main() -> int:
    began = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--tables", nargs="*", default=["plain"], metavar="TABLE[@RATE,...]", help=", ".join(TABLES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--turns", type=float, default=TURNS, help=f"of the circle in {FRAMES} frames")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=250, help="steps between sets of previews")
    parser.add_argument("--at-once", type=int, default=1, help="processes that train beside each other")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="after the start: stop what still trains then")
    parser.add_argument("--rows", type=Path, help="where the rows are added (default: DIR/rows.jsonl)")
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="FILE", help="print the tables of these rows, train nothing"
    )
    parser.add_argument("--vae", action="store_true", help="what the VAE alone gives back; train nothing")
    parser.add_argument("--work", nargs="+", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.vae:
        print(json.dumps(through_the_vae(asked(args.turns))))
        return 0
    rows = args.rows or args.dir / "rows.jsonl"
    if args.work:
        work(args.dir, args.work, rows, args.turns)
        return 0
    if not args.show:
        args.dir.mkdir(parents=True, exist_ok=True)
        write_data(args.dir, args.turns)
        done = {name_of(row["changes"], row["seed"]) for row in read_rows([rows]) if row["step"] == args.steps}
        jobs = write_jobs(args.dir, args.tables, args.seeds, args.steps, args.every, done)
        end = None if args.limit is None else began + args.limit
        train(args.dir, jobs, args.at_once, rows, args.turns, end)
    show(read_rows(args.show or [rows]))
    return 0


def read_rows(files: list[Path]) -> list[Row]:
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
