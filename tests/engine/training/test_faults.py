"""A run that stopped for any reason goes on as if it had not: to the bit, whatever happened to it, wherever.

Each case runs a real trainer process into a fault, takes it up again until it is done, and compares everything with a
run that nothing disturbed. What a kill leaves is the run folder as it was in that instant: the undisturbed run copies
it where a case would be killed (but for those of `KILLS`, whose processes are), and a test holds such copies against
what real kills left. The job: 6 steps of two micro-batches over three clips (so an epoch ends in the middle of
step 2, at the end of step 3, ...), both experts, a running average, a checkpoint every 2 steps, and then the loss on a
fourth clip; a preview before the first, after the fourth and at the end.
"""

import re
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.system import fault_injection
from presets.job.toml_file import absolute_paths, load_job, save_job
from tests.helpers import ROOT
from tests.helpers.jobs import events, write_job
from tests.helpers.training.attempts import Attempt, Orders, Trainers
from tests.helpers.training.sameness import branch, differences, digest

JOB = {
    "steps": 6,
    "clips": 4,
    "gradient_accumulation": 2,
    "dataset": {"num_frames": 1},
    "ema": True,
    "cache_text_embeddings": True,
    "save": {"every": 2, "keep": 2},
    "validation": {"fraction": 0.25, "every": 2, "bins": 1},
    "sample": {"every": 4, "steps": 2, "width": 64, "height": 48, "num_frames": 1},
}
TIMED = (".jsonl", ".html", ".mp4")  # files that tell of times; and videos, whose encoder is not exact
KILLED, STOPPED, FAILED = -signal.SIGKILL, 75, 1
KILLS = (  # one in the middle of each kind of work
    "sigkill:save.begin:0",
    "sigkill:backward:5",
    "sigkill:event.mid-write:4",
    "sigkill:save.before-rename:4",
    "sigkill:preview.denoise:4",
    "sigkill:done.before-event:6",
)


@dataclass(frozen=True)
class Case:
    """What befalls the first attempt and maybe the second; the ones after it go undisturbed."""

    faults: tuple[str, ...]
    code: int  # how the first attempt ends
    again: tuple[str, ...] = ()
    between: Callable[[Path], object] | None = None  # what happens to the run folder before it is taken up again
    workers: tuple[int, int] = (0, 0)  # data workers of the first attempt, and of the others
    extra_saves: bool = False  # a stop saved where the straight run does not
    straight: str = "plain"  # the undisturbed run to compare with; its orders come to the first attempt
    back: int | None = None  # the second attempt goes back to this step

    @property
    def copied(self) -> bool:
        """Whether it begins with what the straight run copied: up to a kill its first attempt would do the same."""
        return (
            len(self.faults) == 1
            and self.faults[0].startswith("sigkill:")
            and self.faults[0] not in KILLS
            and self.workers == (0, 0)
        )


def torn(pattern: str, keep: float) -> Callable[[Path], None]:
    """Power loss: of the newest file that fits, only the first part is on the disk."""

    def tear(run: Path) -> None:
        path = sorted(run.glob(pattern))[-1]
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * keep)])

    return tear


def last_event_torn(run: Path) -> None:
    path = run / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-9])


def last_event_zeros(run: Path) -> None:
    """Some file systems leave zeros where data had not arrived."""
    with (run / "events.jsonl").open("ab") as f:
        f.write(b"\0" * 4096)


ORDERS: dict[str, Orders] = {
    "rate and previews": {2: [{"command": "set", "field": "training.lr", "value": "3e-4"}, {"command": "sample"}]},
    "previews": {2: [{"command": "sample"}]},
    "save": {3: [{"command": "save"}]},
    "refused": {3: [{"command": "set", "field": "training.loss", "value": "mae"}]},
}
CASES = {
    # kill -9: every part of a step, of a save, of a preview, of the end, of the resume itself
    **{
        f"sigkill:{point}:{step}": Case((f"sigkill:{point}:{step}",), KILLED)
        for point, step in [
            ("data.decode", 1),
            ("noise", 5),
            ("backward", 5),
            ("optimizer.before-step", 4),
            ("optimizer.after-step", 4),
            ("ema", 6),
            ("event.before-write", 3),
            ("event.mid-write", 4),
            ("save.begin", 0),
            ("save.after-lora", 4),
            ("save.after-optimizer", 4),
            ("save.before-manifest", 4),
            ("save.before-rename", 4),
            ("save.after-rename", 4),
            ("lora-file.before-rename", 4),
            ("prune", 6),
            ("checkpoint.before-event", 4),
            ("validation.begin", 4),
            ("validation.before-event", 4),
            ("preview.begin", 4),
            ("preview.denoise", 4),
            ("preview.before-video", 4),
            ("preview.before-event", 4),
            ("final.begin", 6),
            ("done.before-event", 6),
            ("done.after-event", 6),
        ]
    },
    "killed twice, the second time while it loads": Case(("sigkill:forward:5",), KILLED, ("sigkill:resume.loading:4",)),
    "killed as soon as it was restored, with other data workers": Case(
        ("sigkill:vae.encode:4",), KILLED, ("sigkill:resume.restored:2",), workers=(1, 2)
    ),
    "killed while it hung": Case(("hang:preview.decode:4",), KILLED),
    # stops: mid-epoch, at its edge, mid-accumulation, mid-save, mid-sample
    "stopped mid-epoch": Case(("sigterm:data.decode:3",), STOPPED),
    "stopped at the edge of an epoch": Case(("sigterm:ema:3",), STOPPED, extra_saves=True),
    "stopped mid-accumulation": Case(("sigterm:forward:4",), STOPPED, extra_saves=True),
    "stopped mid-save": Case(("sigterm:save.before-rename:4",), STOPPED),
    "stopped by who asks twice, the second time mid-save": Case(
        ("sigterm:forward:4", "sigterm:save.before-rename:3"), STOPPED, extra_saves=True
    ),
    "stopped mid-validation": Case(("sigterm:validation.begin:4",), STOPPED),
    "stopped mid-sample": Case(("sigterm:preview.denoise:4",), STOPPED),
    # bugs
    "a bug in a save": Case(("raise:save.before-rename:4",), FAILED),
    # the disk is full for a while
    "no room for a checkpoint": Case(("enospc:save.after-lora:4", "enospc:save.before-rename:4"), 0),
    "no room for a LoRA file": Case(("enospc:lora-file.before-rename:4",), 0),
    "no room for an event": Case(
        ("enospc:event.mid-write:3", "enospc:event.mid-write:3", "enospc:event.before-write:3"), 0
    ),
    "no room, then killed while it waits": Case(("enospc:save.begin:4", "sigkill:save.begin:4"), KILLED),
    # power loss
    "torn weights": Case(
        ("sigkill:forward:5",), KILLED, between=torn("checkpoints/step_*/lora_high_noise.safetensors", 0.5)
    ),
    "torn manifest": Case(("raise:forward:3",), FAILED, between=torn("checkpoints/step_*/manifest.json", 0.0)),
    "torn LoRA file": Case(
        ("sigkill:checkpoint.before-event:4",), KILLED, between=torn("t_0*_low_noise.safetensors", 0.3)
    ),
    "torn older LoRA files": Case(
        ("sigkill:final.begin:6",),
        KILLED,
        between=lambda run: [
            torn("t_000000004_high_noise.safetensors", 0.5)(run),
            torn("t_000000004_low_noise.safetensors", 0.0)(run),
        ],
    ),
    "torn video": Case(("sigkill:forward:5",), KILLED, between=torn("samples/step_000000004/00.mp4", 0.6)),
    "torn poster": Case(("sigkill:forward:5",), KILLED, between=torn("samples/step_000000004/00.png", 0.0)),
    "torn sheets": Case(
        ("sigkill:forward:5",),
        KILLED,
        between=lambda run: [
            torn(f"samples/{name}", 0.5)(run)
            for name in ("step_000000000/sheet.png", "compare_00.png", "compare_00.mp4")
        ],
    ),
    "torn last event": Case(("sigkill:forward:4",), KILLED, between=last_event_torn),
    "zeros behind the last event": Case(("sigkill:forward:4",), KILLED, between=last_event_zeros),
    # an order was honoured, and nobody has taken it away: it is not honoured again
    **{
        f"killed behind an order: {straight}": Case((f"sigkill:control.after-event:{step}",), KILLED, straight=straight)
        for straight, step in [("rate and previews", 2), ("previews", 2), ("save", 3), ("refused", 3)]
    },
    "killed as it went back to an older checkpoint": Case((), 0, ("sigkill:abandon.mid:4",), back=4),
    # not-a-number
    "three steps without numbers": Case(("nan:target:3", "nan:target:4", "nan:loss:5"), FAILED, straight="two skipped"),
    "a step without numbers, then a kill in front of its checkpoint": Case(
        ("nan:target:3", "sigkill:save.begin:4"), KILLED
    ),
    "a step without numbers, and a kill behind its checkpoint": Case(
        ("nan:target:3", "sigkill:forward:5"), KILLED, straight="skipped"
    ),
}
# Further points of a kind, whose tests `make test` leaves out.
FURTHER = {
    *(
        f"sigkill:{at}"
        for at in (
            "data.decode:1",
            "noise:5",
            "optimizer.after-step:4",
            "save.after-lora:4",
            "lora-file.before-rename:4",
            "checkpoint.before-event:4",
            "final.begin:6",
            "optimizer.before-step:4",
            "ema:6",
            "event.before-write:3",
            "save.begin:0",
            "save.after-optimizer:4",
            "save.before-manifest:4",
            "save.after-rename:4",
            "validation.begin:4",
            "preview.begin:4",
            "preview.denoise:4",
            "preview.before-event:4",
            "done.before-event:6",
        )
    ),
    "stopped mid-epoch",
    "stopped at the edge of an epoch",
    "stopped mid-save",
    "stopped mid-validation",
    "stopped mid-sample",  # as test_trainer's
    "three steps without numbers",  # as test_commands's
    "no room for an event",  # as test_commands's
    "torn sheets",
    "stopped by who asks twice, the second time mid-save",
    "no room for a LoRA file",
    "no room, then killed while it waits",
    "torn manifest",
    "torn older LoRA files",
    "torn poster",
    "zeros behind the last event",
    *(f"killed behind an order: {order}" for order in ("previews", "save", "refused")),
    "a step without numbers, and a kill behind its checkpoint",
}
STRAIGHT: dict[str, tuple[str, ...]] = {
    "plain": (),
    "skipped": ("nan:target:3",),
    "two skipped": ("nan:target:3", "nan:target:4"),
    **dict.fromkeys(ORDERS, ()),
}


class Proofs:
    """Runs the cases two at a time, in front of the tests that judge them."""

    def __init__(self, tiny: Path, folder: Path, trainers: Trainers) -> None:
        self.folder, self.trainers = folder, trainers
        self.straight: dict[str, Path] = {}
        self.left: dict[str, Left] = {}  # kill -> what it left
        job = write_job(folder / "shared", tiny, **JOB)
        # runs that are copied into another folder stay those of their clips
        save_job(absolute_paths(load_job(job), job.parent), job)

    def prepare(self, name: str) -> tuple[Path, Path]:
        """(job file, run folder)"""
        folder = self.folder / slug(name)
        folder.mkdir()
        return Path(shutil.copy(self.folder / "shared/job.toml", folder)), folder / "runs" / "t"

    def copies_of(self, straight: str) -> dict[str, Path]:
        """Kill -> the copy that the straight run makes where it would come."""
        faults = {case.faults[0] for case in CASES.values() if case.copied and case.straight == straight}
        if straight == "plain":
            faults |= {fault for fault in KILLS if not half_done(fault)}
        return {fault: self.folder / slug(f"copy of {straight} at {fault}") for fault in faults}

    def run_straight(self, name: str) -> None:
        job, run = self.prepare(f"straight {name}")
        copies = self.copies_of(name)
        assert self.trainers.run(job, faults=STRAIGHT[name], orders=ORDERS.get(name), copies=copies) == 0
        self.straight[name] = run

    def run_case(self, name: str) -> tuple[Path, list[Attempt]]:
        case = CASES[name]
        job, run = self.prepare(name)
        attempts: list[Attempt] = []
        if case.copied:
            shutil.copytree(self.copies_of(case.straight)[case.faults[0]], run.parent)
            if case.between:
                case.between(run)
        for faulty in (case.again, ()) if case.copied else (case.faults, case.again, ()):
            if faulty or not attempts or attempts[-1].code != 0:
                resume = case.copied or bool(attempts)
                attempt = self.trainers.start(
                    job,
                    resume=resume,
                    faults=faulty,
                    workers=case.workers[resume],
                    retry_seconds=0.1,
                    from_step=case.back if len(attempts) == 1 else None,
                    orders=None if resume else ORDERS.get(case.straight),
                )
                attempts.append(attempt)
                if any(fault.startswith("hang") for fault in faulty):
                    attempt.wait_until_struck()
                    attempt.kill()
                attempt.wait()
                if not resume:
                    if case.between:
                        case.between(run)
                    if case.faults[:1] and case.faults[0] in KILLS:
                        self.left[case.faults[0]] = left_in(run)
        return run, attempts


Left = tuple[dict[str, str], list[tuple[str, object]], list[dict[str, Any]]]


def left_in(run: Path) -> Left:
    """The files of a run that was cut short: those of weights and pictures with what they hold, what is written in
    place of an earlier state with its size, but for what tells of times. And what its events tell: of the weights all,
    of the rest kind and step, but for phases, as the first run fills caches, for its log and for findings, as some are
    about what the machine does meanwhile."""
    files = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = re.sub(r"\.tmp-\d+", ".tmp-PID", str(path.relative_to(run)))
        if path.suffix in (".safetensors", ".png"):
            files[name] = digest(path)
        else:
            files[name] = "" if path.suffix in TIMED else f"{path.stat().st_size} bytes"
    told = [(e.kind, e.data.get("step")) for e in events(run) if e.kind not in ("phase", "log", "finding")]
    return files, told, branch(run)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", name)


def tiered(names: Iterable[str]) -> list[object]:
    return [pytest.param(name, marks=[pytest.mark.thorough] if name in FURTHER else []) for name in names]


def half_done(fault: str) -> bool:
    """Whether who comes to this point brings about half of something for the fault: no run can go on from there."""
    return "mid-write" in fault


@pytest.fixture(scope="module")
def proofs(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Proofs, dict[str, "Future[tuple[Path, list[Attempt]]]"]]]:
    wanted = dict.fromkeys(  # each once, also where two tests ask for it
        item.callspec.params["name"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec") and "name" in item.callspec.params
    )
    folder = tmp_path_factory.mktemp("faults")
    with Trainers(cache=folder / "cache") as trainers, ThreadPoolExecutor(2) as pool:
        proofs = Proofs(tiny, folder, trainers)
        list(pool.map(proofs.run_straight, dict.fromkeys(CASES[name].straight for name in wanted)))
        yield proofs, {name: pool.submit(proofs.run_case, name) for name in wanted}


@pytest.mark.torture
@pytest.mark.parametrize("name", tiered(CASES))
def test_a_disturbed_run_comes_to_the_same(proofs, name):
    case, (all_proofs, runs) = CASES[name], proofs
    run, attempts = runs[name].result()
    assert case.copied or attempts[0].code == case.code, attempts[0].said()[-3000:]
    for attempt, faulty in zip(attempts, (case.again,) if case.copied else (case.faults, case.again), strict=False):
        assert attempt.said().count("on purpose") >= len(faulty), attempt.said()[-3000:]
    assert attempts[-1].code == 0, attempts[-1].said()[-3000:]
    assert differences(run, all_proofs.straight[case.straight], extra_saves=case.extra_saves) == []
    if case.straight in ORDERS:
        assert honoured(run) == honoured(all_proofs.straight[case.straight])
        assert not list((run / "control").iterdir())


@pytest.mark.torture
@pytest.mark.parametrize("name", tiered(fault for fault in KILLS if not half_done(fault)))
def test_what_is_copied_is_what_a_kill_leaves(proofs, name):
    all_proofs, runs = proofs
    runs[name].result()
    assert left_in(all_proofs.copies_of("plain")[name] / "t") == all_proofs.left[name]


def honoured(run: Path) -> list[tuple[str, object]]:
    """Everything that an order can bring about, however often and on whatever branch."""
    return [
        (e.kind, e.data.get("step"))
        for e in events(run)
        if e.kind in ("sample", "checkpoint") or "order" in e.data or e.data.get("code") == "command-refused"
    ]


def test_every_point_is_somewhere_in_the_engine_and_every_one_there_is_known():
    source = "".join(path.read_text() for path in (ROOT / "engine").rglob("*.py") if path.name != "fault_injection.py")
    called = set(re.findall(r'fault_injection\.(?:at|due|poison)\(f?"([a-z.-]+)(?=")', source))
    called |= (
        {f"save.after-{part}" for part in ("lora", "optimizer")}
        if 'fault_injection.at(f"save.after-{' in source
        else set()
    )
    assert called == fault_injection.POINTS.keys() | fault_injection.VALUES.keys()
