"""Whether LoRAs learn, and what the settings do to that: trainings on the toy base of a motion that it was never shown.

    python -m benchmarks.learning DIR [--tables plain@1e-4,1e-3 rank ...] [--seeds 1 2 3] [--steps N] [--at-once N]
    python -m benchmarks.learning DIR --show FILE
    python -m benchmarks.learning DIR --vae [--turns N]

Twelve clips of objects that go round, real video files with captions, are trained on by whole jobs through the
trainer's own entry. Its previews start from first frames of other colours and shapes and are read back from the files
it leaves: how far the object is from the circle that was wanted, what captions of the base's own motions still do, and
how the object looks. Previews of step 0 are the base's.

A table's variants are trained at each learning rate that its name is given with. Each row of FILE (DIR/rows.jsonl) is
one set of previews of one run. DIR keeps the clips and runs; what was begun there is not begun again. `--show` prints
the tables of rows that are there already, `--vae` what the base's VAE alone gives back of the films that are wanted:
no LoRA can come nearer. Errors are in widths of the picture; `films` and `motion` of the toy base say what is drawn
and measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

from engine.memory.planning import DEQUANTIZED
from engine.preview.video_files import write_video
from engine.toy_base import DATA
from engine.toy_base.clip_vae import decode, encode, flat_convolutions
from engine.toy_base.films import FRAMES, MOTIONS, SIDE, Scene, render
from engine.toy_base.motion import TURNS, circling, look, path_error, standing, turned
from presets.job.toml_file import job_from_dict, save_job
from presets.runs.events import read_events

VERB = "circles"  # the trigger word: the tokenizer knows it whole, no film of the base has it
TRAINED = [(colour, shape) for colour in ("red", "green", "blue") for shape in ("ball", "box")] * 2
UNSEEN = [(colour, shape) for colour in ("yellow", "purple", "orange") for shape in ("star", "ring")]
# What the base knows, to see whether it still does.
STRAIGHT = [("moves left", UNSEEN[0]), ("moves up", UNSEEN[3]), ("moves right", UNSEEN[4])]
NEAR = 0.05  # widths: a preview whose object is nearer than this to its circle goes round
CLIP_SEED, UNSEEN_SEED = 11, 12
RATE = 1e-3  # of tables that are named without one

Changes = dict[str, Any]  # field -> value, besides `job_tables`
Row = dict[str, Any]

TABLES: dict[str, dict[str, Changes]] = {
    "plain": {"plain": {}},
    "batch": {"batch 1": {}, "batch 4": {"training.batch_size": 4}},
    "rank": {f"rank {rank}": {"target.rank": rank} for rank in (4, 16, 32)},
    "expert": {
        "both": {},
        "high alone": {"multistage.low_noise": False},
        "low alone": {"multistage.high_noise": False},
    },
    "timestep": {
        "linear": {},
        "sigmoid": {"training.timestep_type": "sigmoid"},
        "shift": {"training.timestep_type": "shift"},
        "towards high noise": {"training.timestep_bias": "high_noise"},
        "towards low noise": {"training.timestep_bias": "low_noise"},
    },
    "switch": {f"switch every {n}": {"multistage.switch_every": n} for n in (1, 10, 50)},
    "precision": {p: {"quantization.transformer": p} for p in ("none", "float8", "qfloat8", "qint8", "qint4")},
    "frames": {
        "17 frames": {},
        "9 frames, uniform": {"datasets.0.num_frames": 9},
        "9 frames, realtime": {"datasets.0.num_frames": 9, "datasets.0.sampling": "realtime"},
    },
    "preservation": {
        "off": {},
        "DOP": {"training.dop": True, "training.dop_class": "stays"},
        "regularization": {
            "datasets.1": {"path": "known", "regularization": True, "num_frames": FRAMES, "resolutions": [SIDE]}
        },
    },
    "dropout": {f"dropout {share}": {"datasets.0.caption_dropout": share} for share in (0.0, 0.05, 0.3)},
    "guidance": {"off": {}, "differential, 3": {"advanced.differential_guidance": True}},
}
PLAIN: Changes = {  # what the jobs have anyway: as a change it is none
    "target.rank": 16,
    "training.batch_size": 1,
    "multistage.switch_every": 10,
    "quantization.transformer": "none",
    "datasets.0.caption_dropout": 0.05,
}


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


def variants(table: str) -> list[tuple[str, Changes]]:
    """Those of `TABLE` or `TABLE@RATE,RATE`: label, and all that is changed, the rate always among it."""
    name, _, rates = table.partition("@")
    lrs = [float(rate) for rate in rates.split(",")] if rates else [RATE]
    return [
        (f"{label}, {lr:g}", {"training.lr": lr} | {k: v for k, v in changes.items() if PLAIN.get(k) != v})
        for label, changes in TABLES[name].items()
        for lr in lrs
    ]


def name_of(changes: Changes, seed: int) -> str:
    """Of the run with these changes: the same for a variant that stands in several tables."""
    told = [
        f"{path.rpartition('.')[2]}-{value['path'] if isinstance(value, dict) else value}"
        for path, value in sorted(changes.items())
    ]
    return "_".join([*told, f"seed-{seed}"])


def write_jobs(folder: Path, tables: list[str], seeds: list[int], steps: int, every: int) -> list[Path]:
    """One job file for each variant and seed, the changes beside it; a seed's come before those of the next."""
    runs = {
        name_of(changes, seed): (changes, seed) for seed in seeds for table in tables for _, changes in variants(table)
    }
    paths = []
    for number, (name, (changes, seed)) in enumerate(runs.items()):
        tables_of_job = with_changes(job_tables(name, seed, steps, every), changes)
        tables_of_job["sample"]["first"] = number == 0 or (seed == seeds[0] and "quantization.transformer" in changes)
        paths.append(folder / f"{name}.toml")
        save_job(job_from_dict(tables_of_job), paths[-1])
        paths[-1].with_suffix(".json").write_text(json.dumps({"changes": changes, "seed": seed}))
    return paths


def work(folder: Path, jobs: list[str], rows: Path, turns: float) -> None:
    """Train the jobs that no other process has begun, and measure their previews."""
    from engine.run import RESUMABLE, run_job

    torch.set_num_threads(1)
    # The planner holds a toy in bf16 where float8 is asked for, since no CPU computes it. Here the card is to.
    if torch.cuda.is_available():
        DEQUANTIZED["float8"] = "float8"
    for name in jobs:
        path = folder / f"{name}.toml"
        try:
            path.with_suffix(".begun").touch(exist_ok=False)
        except FileExistsError:
            continue
        code = run_job(path, None, resume=False, workers=1)
        told = json.loads(path.with_suffix(".json").read_text())
        with rows.open("a") as out:
            out.write("".join(json.dumps({**told, **row}) + "\n" for row in measured(folder / "runs" / name, turns)))
        if code:
            print(f"{name}: exit code {code}", flush=True)
        if code == RESUMABLE:  # the time is over
            return


def measured(run: Path, turns: float) -> list[Row]:
    """One row for each whole set of previews that a run has left."""
    events = [event for event, _ in read_events(run / "events.jsonl")]
    pace = [event.data["seconds"]["total"] for event in events if event.kind == "step"]
    made: dict[int, dict[int, Path]] = defaultdict(dict)
    for event in events:
        if event.kind == "sample":
            made[event.data["step"]][int(Path(event.data["path"]).stem)] = run / event.data["path"]
    wanted = asked(turns)
    common = {"seconds_per_step": round(statistics.median(pace), 4) if pace else None}
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


def train(folder: Path, jobs: list[Path], at_once: int, rows: Path, turns: float, limit: float | None) -> None:
    """All jobs, by so many processes, spread over the cards. After `limit` seconds what still trains is stopped and
    measured as far as it came."""
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
            worker.wait(None if limit is None else max(0, began + limit - time.time()))
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        worker.wait()
    print(f"{len(names)} jobs in {time.time() - began:.0f} s", flush=True)


@torch.no_grad()
def through_the_vae(wanted: list[tuple[Scene, str]]) -> Row:
    """Scores of the wanted films as the base's VAE gives them back."""
    vae = AutoencoderKLWan.from_pretrained(DATA / "vae", torch_dtype=torch.float32)
    with flat_convolutions():
        films = [decode(vae, encode(vae, render(scene)[0])[:, :16]).clamp(-1, 1) for scene, _ in wanted]
    return scores(films, wanted)


def show(rows: list[Row]) -> None:
    """The rows of step 0, and a table for each group of variants of which at least two have rows."""
    base = [row for row in rows if row["step"] == 0]
    for row in base:
        print({k: v for k, v in row.items() if k not in ("circle_errors", "seconds_per_step", "seed")})
    plain = [row for row in base if "quantization.transformer" not in row["changes"]]
    rates = sorted({row["changes"]["training.lr"] for row in rows})
    for table in TABLES:
        lines = table_lines(table, rates, rows, plain)
        if lines:
            print(f"\n| {table}, rate | seeds | {' | '.join(HEAD)} |\n|{'---|' * (len(HEAD) + 2)}")
            print("\n".join(lines))


HEAD = ("circle error by step", "ratio", "near", "turns", "look, dB", "straight error", "straight look, dB", "s/step")


def table_lines(table: str, rates: list[float], rows: list[Row], base: list[Row]) -> list[str]:
    """Lines of a table at the rates at which there is something to compare; `plain` compares the rates."""
    found = []
    for rate in rates:
        lines = [variant_line(label, changes, rows, base) for label, changes in variants(f"{table}@{rate}")]
        lines = [line for line in lines if line]
        if len(lines) > 1 or table == "plain":
            found += lines
    return found


def variant_line(label: str, changes: Changes, rows: list[Row], base: list[Row]) -> str:
    """A line of the table: means over the seeds at the last step that all have, with the least and the most. "" without
    rows."""
    mine = [row for row in rows if row["changes"] == changes and row["step"] > 0]
    if not mine:
        return ""
    course = defaultdict(list)
    for row in mine:
        course[row["step"]].append(row)
    seeds = len({row["seed"] for row in mine})
    final = max(step for step, found in course.items() if len(found) == seeds)
    last = course[final]
    told = [
        f"{step}: {statistics.mean(row['circle_error'] for row in found):.3f}"
        for step, found in sorted(course.items())
        if step < final
    ]
    error = spread([row["circle_error"] for row in last])
    ratio = f"{base[0]['circle_error'] / statistics.mean(row['circle_error'] for row in last):.1f}x" if base else ""
    columns = [
        ", ".join([*told, f"{final}: {error}"]),
        ratio,
        f"{statistics.mean(row['near'] for row in last):.1f} of {len(UNSEEN)}",
    ]
    for key, digits in (("turns", 2), ("look", 1), ("straight_error", 3), ("straight_look", 1)):
        columns.append(spread([row[key] for row in last], digits))
    columns.append(f"{statistics.mean(row['seconds_per_step'] for row in last):.2f}")
    return f"| {label} | {seeds} | {' | '.join(columns)} |"


def spread(values: list[float], digits: int = 3) -> str:
    """Mean, and the least and the most where there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--tables", nargs="*", default=["plain"], metavar="TABLE[@RATE,...]", help=", ".join(TABLES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--turns", type=float, default=TURNS, help=f"of the circle in {FRAMES} frames")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=250, help="steps between sets of previews")
    parser.add_argument("--at-once", type=int, default=1, help="processes that train beside each other")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="stop what still trains then")
    parser.add_argument("--rows", type=Path, help="where the rows are added (default: DIR/rows.jsonl)")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of these rows, train nothing")
    parser.add_argument("--vae", action="store_true", help="what the VAE alone gives back; train nothing")
    parser.add_argument("--work", nargs="+", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.vae:
        print(json.dumps(through_the_vae(asked(args.turns))))
        return 0
    rows = args.show or args.rows or args.dir / "rows.jsonl"
    if args.work:
        work(args.dir, args.work, rows, args.turns)
        return 0
    if not args.show:
        args.dir.mkdir(parents=True, exist_ok=True)
        write_data(args.dir, args.turns)
        jobs = write_jobs(args.dir, args.tables, args.seeds, args.steps, args.every)
        train(args.dir, jobs, args.at_once, rows, args.turns, args.limit)
    show([json.loads(line) for line in rows.read_text().splitlines()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
