"""Jobs on one GPU and on several of one host: the same LoRAs, and how much sooner.

    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --steps 20 --json apart.json
    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --on-cpu      (a job on the tiny base, gloo in NCCL's place)
    python -m benchmarks.gpus_apart JOB.toml --gpus 0,1 --per-clip 2 --steps 20 --json shared.json
    python -m benchmarks.gpus_apart --real DIR --cases clips-480p experts micro-batches --kernel flash \\
        --gpus 0,1,2,3 --at-once --seconds 470 --json gpus.json
    (benchmarks.gpus_apart_cases' jobs of the real shape, with 60 GB of random weights in DIR; several trainings at a
    time, each on cards of its own)
    python -m benchmarks.gpus_apart --tiny DIR --gpus 0,1,2,3 --at-once      (all cases in small, on the CPU)

Of each job one training has one GPU and one has --together of them. With results of more than RECORDED cards in one
training, or of RECORDED_PER_CLIP that share a clip, raise these in presets/job/gpu_shares.py: checks then no longer say
that nobody has measured it.

Where both experts train and the number of GPUs is even, they train apart; else the GPUs share the micro-batches of each
step, so training.gradient_accumulation has to be a multiple of their number. With --per-clip they share clips: those
LoRAs agree within rounding and not to the bit: printed are |difference| / |one's| of B, and of A and B of each kind of
linear, which are saved in fp32. --kernel trains such jobs on one GPU once more with another attention
(benchmarks.one_kernel) and prints the ratio of the one difference to the other: up to 1, two GPUs are no further from
one than one is from itself. A block that keeps its graph is compiled otherwise than one that is recomputed, and two
GPUs have room to keep more: --streamed keeps none in any training, so that this is no part of the difference. Nothing
is called equal where a gradient is zero, or a B has learnt nothing: zeros are the same to the bit.

How much faster it is goes by the later half of the steps: the first ones compile. One at a time is the surer way, the
one on the first GPU before and after (--once: before alone), so that a machine that slows down shows itself. With
--at-once the trainings begin whenever there are cards for them, in the order of the cases; each has a folder of its
own. They share the weight cache (who finds nothing there packs, and puts its file there whole: two that begin together
both do) and the compilers' caches. Their starts disturb the steps of others a little. The last card is measured
beforehand, while the files are written, and all train with its rates, so that they choose the same kernels.

The file of --json is written anew after each training. --seconds kills what has not ended by then: what steps it has
made are counted. Host memory is that of all processes of a training after its first step, what they share counted once
(PSS), also without files that are mapped, which trainings at once share; the launcher that torch starts several with is
among them.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpus_apart_cases import CASES, job_of, shapes_of, write_files
from benchmarks.gpus_apart_compared import compared, events_of, steps_of, table, timed
from presets.job.schema import Job
from presets.job.toml_file import absolute_paths, load_job, save_job, with_value
from presets.machine.machine import read_machine

ONE, SEVERAL, AGAIN, OTHERWISE = "one", "several", "one again", "one with another attention"
LOOK_SECONDS = 0.2  # between two looks at the trainings
LINES = 20  # of a failed training's output


@dataclass
class Training:
    """One process, or those of one torchrun."""

    case: str
    name: str
    job: Job
    cards: int
    per_clip: int
    command: list[str]
    gpus: list[int] = field(default_factory=list)  # once it has begun
    folder: Path = Path()
    process: "subprocess.Popen[bytes] | None" = None
    memory: tuple[float, float] | None = None  # GiB, all and without files
    end: str = "not begun"

    @property
    def run(self) -> Path:
        return self.folder / self.job.job.name

    def begin(self, gpus: list[int], folder: Path, environ: Mapping[str, str]) -> None:
        self.gpus, self.folder, self.end = gpus, folder, "under way"
        folder.mkdir(parents=True)
        shared = with_value(with_value(self.job, "job.gpus", gpus), "job.gpus_per_clip", self.per_clip)
        save_job(shared, folder / "job.toml")
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(gpus)}"]
        trainer = [sys.executable, *(several if len(gpus) > 1 else []), "-m", *self.command]
        trainer += [str(folder / "job.toml"), "--out", str(folder)]
        with (folder / "output.txt").open("wb") as out:
            self.process = subprocess.Popen(trainer, env=environ, stdout=out, stderr=out, start_new_session=True)

    def look(self) -> bool:
        """Whether it is over."""
        assert self.process is not None
        code = self.process.poll()
        if code is None and self.memory is None and steps_of(events_of(self.run)):
            self.memory = host_memory(self.process.pid)
        if code is not None:
            self.end = "done" if code == 0 else f"failed with {code}"
        return code is not None

    def kill(self) -> None:
        """It, and all below it: torchrun's have sessions of their own."""
        assert self.process is not None
        root = psutil.Process(self.process.pid)
        for process in [*root.children(recursive=True), root]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        self.end = "cut off"

    def found(self, round_of: int) -> dict[str, Any]:
        every, own = self.memory or (None, None)
        where = {"host memory, GiB": every, "host memory without files, GiB": own}
        return {"end": self.end, "GPUs": ",".join(map(str, self.gpus)), **timed(self.run, round_of), **where}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, nargs="?")
    parser.add_argument("--gpus", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1])
    parser.add_argument("--together", type=int, metavar="N", help="GPUs of a training: all; with --at-once two")
    parser.add_argument("--steps", type=int, help="instead of the job's or the case's")
    parser.add_argument("--per-clip", type=int, default=1, help="GPUs that share each clip of JOB")
    parser.add_argument("--on-cpu", action="store_true", help="show no GPU to the trainers")
    parser.add_argument("--tiny", type=Path, metavar="DIR", help="the cases in small, on the CPU")
    parser.add_argument("--real", type=Path, metavar="DIR", help="the cases, with what they need there")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--once", action="store_true", help="one GPU before, not after as well")
    parser.add_argument("--kernel", metavar="NAME", help="also one GPU with this attention: flash; on a CPU reversed")
    parser.add_argument("--streamed", action="store_true", help="no block stays on the GPU, in any training")
    parser.add_argument("--at-once", action="store_true", help="each training as soon as there are cards for it")
    parser.add_argument("--seconds", type=float, default=math.inf, help="until what is under way is killed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    began = time.monotonic()
    if sum(given is not None for given in (args.job, args.tiny, args.real)) != 1:
        parser.error("name a job, --tiny DIR or --real DIR")
    together = args.together or (2 if args.at_once else len(args.gpus))
    if together > len(args.gpus):
        parser.error(f"--gpus names fewer than {together}")
    with tempfile.TemporaryDirectory(prefix="gpus-apart") as name:
        temporary = Path(name)
        environ = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if args.on_cpu or args.tiny else {})}
        if args.at_once:
            environ["XDG_STATE_HOME"] = str(temporary / "state")
        jobs = _jobs(args, together, environ)
        trainings = [
            t for case, (job, per_clip) in jobs.items() for t in _trainings(args, case, job, together, per_clip)
        ]
        results = Results(args, trainings, began)
        train(trainings, args.gpus, temporary, environ, results, at_once=args.at_once, until=began + args.seconds)
        for case in jobs:
            print(results.shown(case), flush=True)
    return 0 if all(map(results.well, jobs)) else 1


def _jobs(args: argparse.Namespace, together: int, environ: Mapping[str, str]) -> dict[str, tuple[Job, int]]:
    """The jobs to compare, with how many GPUs share a clip, by name."""
    found: dict[str, tuple[Job, int]] = {}
    if args.job is not None:
        found = {"job": (absolute_paths(load_job(args.job), args.job.resolve().parent), args.per_clip)}
        _prepare(None, args, environ)
    else:
        folder, tiny = (args.tiny or args.real).absolute(), args.tiny is not None
        _prepare(folder, args, environ)
        for name in args.cases:
            per_clip = together if CASES[name].per_clip > 1 else 1
            found[name] = job_of(folder, name, CASES[name], tiny=tiny), per_clip
    changes: dict[str, Any] = {"save.dtype": "fp32"}
    changes |= {"training.steps": args.steps} if args.steps else {}
    changes |= {"model.layer_offloading": True} if args.streamed else {}
    for name, (job, per_clip) in found.items():
        for path, value in changes.items():
            job = with_value(job, path, value)
        found[name] = job, per_clip
    return found


def _prepare(folder: Path | None, args: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Write the cases' files, and have all cards known by the rates of the last, at the same time."""
    began = time.monotonic()
    waiting: list[Future[object]] = []
    with ThreadPoolExecutor() as pool:
        if args.at_once and not (args.on_cpu or args.tiny):
            command = [sys.executable, "-m", "benchmarks.rates_alike", str(args.gpus[-1])]
            waiting.append(pool.submit(subprocess.run, command, env=environ, check=True))
        if folder is not None:
            tiny = args.tiny is not None
            waiting.append(pool.submit(write_files, folder, shapes_of(args.cases, tiny=tiny), tiny=tiny))
        for one in waiting:
            one.result()
    print(f"files and rates after {time.monotonic() - began:.0f} s", flush=True)


def _trainings(args: argparse.Namespace, case: str, job: Job, together: int, per_clip: int) -> list[Training]:
    """Of one job, in the order in which they begin."""
    found = [
        Training(case, SEVERAL, job, together, per_clip, ["engine"]),
        Training(case, ONE, job, 1, 1, ["engine"]),
    ]
    if not args.at_once:
        found.reverse()
        if not args.once:
            found.append(Training(case, AGAIN, job, 1, 1, ["engine"]))
    if args.kernel and per_clip > 1:
        found.append(Training(case, OTHERWISE, job, 1, 1, ["benchmarks.one_kernel", args.kernel]))
    return found


def train(
    waiting: list[Training],
    gpus: list[int],
    folder: Path,
    environ: Mapping[str, str],
    results: "Results",
    *,
    at_once: bool,
    until: float,
) -> None:
    """All of them, or as far as they come until then, by the monotonic clock."""
    waiting, under_way, began = list(waiting), list[Training](), time.monotonic()
    while waiting or under_way:
        used = {gpu for one in under_way for gpu in one.gpus}
        for one in list(waiting):
            free = [gpu for gpu in gpus if gpu not in used]
            if len(free) >= one.cards and (at_once or not under_way):
                one.begin(free[: one.cards], folder / one.case / one.name.replace(" ", "-"), environ)
                waiting.remove(one)
                under_way.append(one)
                used |= set(one.gpus)
                _say(began, one)
        time.sleep(LOOK_SECONDS)
        over = [one for one in under_way if one.look()]
        if time.monotonic() > until:
            for one in under_way:
                if one not in over:
                    one.kill()
            over, waiting = under_way, []
        for one in over:
            _say(began, one)
            if one.end != "done":
                text = (one.folder / "output.txt").read_text("utf-8", "replace")
                print("\n".join(text.splitlines()[-LINES:]), file=sys.stderr, flush=True)
        under_way = [one for one in under_way if one not in over]
        if over:
            results.write()


def _say(began: float, one: Training) -> None:
    gpus = ",".join(map(str, one.gpus))
    print(f"{time.monotonic() - began:6.0f} s  {one.case}, {one.name} on {gpus}: {one.end}", flush=True)


class Results:
    """What is known by now."""

    def __init__(self, args: argparse.Namespace, trainings: list[Training], began: float) -> None:
        self._args, self._trainings, self._began = args, trainings, began
        machine = read_machine(Path.cwd())
        self._about = {
            "card": machine.gpus[0].name if machine.gpus and not (args.on_cpu or args.tiny) else "cpu",
            "trainings at once": args.at_once,
            "cards": len(args.gpus),
        }
        self._compared: dict[tuple[str, str], dict[str, Any]] = {}

    def of(self, case: str) -> dict[str, Any]:
        """The trainings of a case, and each that has ended compared with that of one GPU."""
        of_case = {one.name: one for one in self._trainings if one.case == case}
        round_of = of_case[SEVERAL].per_clip
        trainings = {name: one.found(round_of) for name, one in of_case.items()}
        if of_case[ONE].end == "done":
            for name, one in of_case.items():
                if name != ONE and one.end == "done" and (case, name) not in self._compared:
                    self._compared[case, name] = compared(one.job, of_case[ONE].run, one.run)
        comparisons = {name: self._compared[case, name] for name in of_case if (case, name) in self._compared}
        return {"trainings": trainings, "ratios": _ratios(trainings, comparisons), "compared": comparisons}

    def write(self) -> None:
        if self._args.json:
            cases = dict.fromkeys(one.case for one in self._trainings)
            whole = {**self._about, "seconds": time.monotonic() - self._began, "cases": {c: self.of(c) for c in cases}}
            self._args.json.write_text(json.dumps(whole, indent=1) + "\n")

    def shown(self, case: str) -> str:
        found = self.of(case)
        ratios = [f"{name}: {value:.4g}" for name, value in found["ratios"].items()]
        return "\n".join([table(case, found["trainings"], found["compared"]), *ratios, ""])

    def well(self, case: str) -> bool:
        """All have ended, all B have learnt, and what has to be equal to the bit is."""
        found = self.of(case)
        per_clip = next(one.per_clip for one in self._trainings if one.case == case and one.name == SEVERAL)
        equal = [AGAIN, *([SEVERAL] if per_clip == 1 else [])]
        return all(one["end"] == "done" for one in found["trainings"].values()) and all(
            "refused" not in one and (name not in equal or one["bit-equal"]) for name, one in found["compared"].items()
        )


def _ratios(trainings: dict[str, dict[str, Any]], comparisons: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Times as fast as the faster one of one GPU, times its memory, and times as far from it as another attention."""
    out: dict[str, float] = {}
    several, ones = trainings[SEVERAL], [trainings[name] for name in (ONE, AGAIN) if name in trainings]
    for part in ("a step, s", "later steps, s", "all after loading, s"):
        found = [one[part] for one in ones if one.get(part)]
        alike = part == "a step, s" or len({one.get("steps") for one in [several, *ones]}) == 1
        if found and several.get(part) and alike:
            out[f"times as fast: {part.removesuffix(', s')}"] = min(found) / several[part]
    for part in ("host memory, GiB", "host memory without files, GiB"):
        if ones[0].get(part) and several.get(part):
            out[f"times the {part.removesuffix(', GiB')}"] = several[part] / ones[0][part]
    mine, otherwise = comparisons.get(SEVERAL, {}), comparisons.get(OTHERWISE, {})
    if "refused" in mine or "refused" in otherwise:
        return out
    for part in ("LoRAs, of |B|", "largest relative difference of a loss"):
        if mine.get(part) is not None and otherwise.get(part):
            out[f"as far from one GPU as another attention is: {part}"] = mine[part] / otherwise[part]
    return out


def host_memory(pid: int) -> tuple[float, float] | None:
    """GiB of host memory of a process and all below it, what several of them map counted once: all, and what is no
    mapped file. None where one ends meanwhile."""
    try:
        root = psutil.Process(pid)
        parts = [_shares(p.pid) for p in [root, *root.children(recursive=True)]]
    except (psutil.NoSuchProcess, OSError):
        return None
    return sum(p["Pss"] for p in parts) / 2**20, sum(p["Pss_Anon"] + p["Pss_Shmem"] for p in parts) / 2**20


def _shares(pid: int) -> dict[str, int]:
    """KiB, as the kernel counts what a process shares with others."""
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {row[0].rstrip(":"): int(row[1]) for row in rows}


if __name__ == "__main__":
    raise SystemExit(main())
