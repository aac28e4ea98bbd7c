"""Diagnosis of a run from its own events: the usual troubles of these LoRAs, each named once, with its numbers and what
to do.

A watcher looks for a few related troubles. It is fed the events of the surviving branch in order, so after a resume it
knows what it knew and has said what it said. Findings whose code is in `presets.diagnosis.resources.TIMING` depend on
the clock or on memory; all others are functions of the training alone: a run that was interrupted raises the same ones
at the same steps. Thresholds are wide on purpose: a healthy run stays silent.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from statistics import median
from typing import Any, Protocol

from msgspec import Struct

from presets.clips.clip_statistics import MOST_FRAMES
from presets.clips.geometry import WAN_FPS, nearest_frame_counts
from presets.diagnosis.gradients import NoGradient
from presets.diagnosis.loss_spikes import SpikeWatch
from presets.diagnosis.resources import MemoryGrowth, Pace, PreviewTime, Starving
from presets.diagnosis.robust_statistics import Trend, smoothed, trend_of
from presets.errors import UserError
from presets.findings import Finding
from presets.job.expert_schedule import EXPERTS, PANEL, Expert, lr_of, rank_of, trained_experts
from presets.job.schema import Job
from presets.job.toml_file import with_value
from presets.runs.events import Event

LOOK_EVERY = 50  # steps
EARLY = 200  # steps before anything is said of what the previews show
WINDOW = 4000  # steps of an expert that are remembered
BINS, TIMESTEPS = 20, 1000  # losses are compared at like noise only
SPEED = 1.25
NAMES: dict[Expert, str] = {"high_noise": "high-noise", "low_noise": "low-noise"}


class Watcher(Protocol):
    """Looks at a run's events (presets.runs.history.TELLING) in their order, on resume those of earlier attempts first,
    and says what it finds. The same events, the same findings."""

    def feed(self, event: Event) -> list[Finding]: ...


class Diagnosis:
    """All watchers of a run. Feed every event; each code is reported once, loss spikes as often as they come."""

    def __init__(
        self,
        job: Job,
        *,
        ram_total_gib: float = 0.0,
        vram_total_gib: float = 0.0,
        speeds: Mapping[int, float] | None = None,
    ) -> None:
        """`speeds`: how much faster than life the clips are shown to the LoRA, by number of frames
        (presets.facts.facts.clip_speeds)."""
        memory = MemoryGrowth(job.training.steps, ram_total_gib=ram_total_gib, vram_total_gib=vram_total_gib)
        self._watchers: list[Watcher] = [
            Learning(job),
            NoGradient(job),
            MotionSpeed(job, speeds or {}),
            Pace(),
            Starving(),
            memory,
            PreviewTime(),
        ]
        self._spikes = SpikeWatch()
        self._reported: set[str] = set()

    def feed(self, event: Event) -> list[Finding]:
        found = [f for watcher in self._watchers for f in watcher.feed(event) if f.code not in self._reported]
        self._reported |= {f.code for f in found}
        return found + self._spikes.feed(event)


class Point(Struct, frozen=True):
    """One step of an expert."""

    bin: int  # of its timestep
    main: float
    preservation: float | None
    lr: float
    grad_norm: float


class Learning:
    """The camera does not move, details get worse, one expert does not learn, the run overfits."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._points: dict[Expert, list[Point]] = {e: [] for e in EXPERTS}
        self._visits: Counter[str] = Counter()
        self._steps: Counter[Expert] = Counter()

    def feed(self, event: Event) -> list[Finding]:
        data = event.data
        if event.kind == "changed":
            self._job = changed(self._job, data)
        if event.kind != "step":
            return []
        expert: Expert = data["expert"]
        points = self._points[expert]
        kept = [value for name, value in data["parts"].items() if name != "main"]
        points.append(
            Point(
                min(BINS - 1, int(data["timestep"] * BINS / TIMESTEPS)),
                data["parts"].get("main", data["loss"]),
                sum(kept) if kept else None,
                data["lr"],
                data["grad_norm"],
            )
        )
        del points[:-WINDOW]
        self._visits.update(data["clips"])
        self._steps[expert] += 1
        if data["step"] % LOOK_EVERY:
            return []
        found = [*self._not_learning(), *self._overfit(data["step"])]
        return [*found, *self._camera(data["step"]), *self._detail(data["step"])] if data["step"] >= EARLY else found

    # --- what the job itself explains, once the previews can show it
    # ----------------------------------------------------

    def _camera(self, step: int) -> Iterator[Finding]:
        job = self._job
        if job.job.kind != "motion":
            return
        high = self._steps["high_noise"] / max(1, self._steps.total())
        shows = "previews will move as the base model does"
        if not job.multistage.high_noise:
            yield _finding(
                "camera-does-not-move",
                "multistage.high_noise",
                f"the high-noise expert, which lays out camera and motion, had none of {step} steps: {shows}",
                "Train it: set multistage.high_noise = true in a new run",
            )
        elif job.training.timestep_bias == "low_noise":
            yield _finding(
                "camera-does-not-move",
                "training.timestep_bias",
                f"after {step} steps with a bias towards low noise the early timesteps, where camera and motion arise,"
                f" were hardly seen: {shows}",
                "If the camera does not move, use balanced or high_noise in a new run, and name the motion in the"
                " captions",
            )
        elif high < 0.25:
            yield _finding(
                "camera-does-not-move",
                "multistage.high.share",
                f"only {self._steps['high_noise']} of {step} steps went to the high-noise expert, which lays out camera"
                " and motion",
                "If the camera does not move, give multistage.high a larger share in a new run",
            )

    def _detail(self, step: int) -> Iterator[Finding]:
        job = self._job
        if not job.multistage.low_noise:
            if job.job.kind != "motion":
                yield _finding(
                    "detail-worse",
                    "multistage.low_noise",
                    f"the low-noise expert, which draws detail and faces, had none of {step} steps: a {job.job.kind}"
                    " will hardly be met",
                    "Train it: set multistage.low_noise = true in a new run",
                )
            return
        lr, rank = lr_of(job, "low_noise"), rank_of(job, "low_noise")
        if lr >= 4e-4 and job.training.optimizer != "prodigy":
            own = "training.lr" if job.multistage.low.lr is None else "multistage.low.lr"
            yield _finding(
                "detail-worse",
                own,
                f"{self._steps['low_noise']} steps of the low-noise expert at a learning rate of {lr:g}: detail and"
                " faces easily get worse than the base model's",
                f"If they do, set {own} = 1e-4 while it runs and resume from an earlier checkpoint",
            )
        elif job.job.kind != "motion" and job.training.timestep_bias == "high_noise":
            yield _finding(
                "detail-worse",
                "training.timestep_bias",
                f"after {step} steps with a bias towards high noise the late timesteps, where identity and detail live,"
                " were hardly seen",
                "If faces or detail look worse than the base model's, use balanced or low_noise in a new run",
            )
        elif job.job.kind == "character" and rank < 8:
            yield _finding(
                "detail-worse",
                "target.rank",
                f"rank {rank} is little for a face",
                "If the likeness stays loose, raise target.rank to 16 or 32 in a new run",
            )

    # --- what the numbers say
    # -------------------------------------------------------------------------------------------

    def _not_learning(self) -> Iterator[Finding]:
        part = " Camera and motion are this expert's part." if self._job.job.kind == "motion" else ""
        for expert in trained_experts(self._job):
            last = self._points[expert][-30:]
            if len(last) < 30:
                continue
            what = f"the {NAMES[expert]} expert does not learn: "
            own = f"multistage.{PANEL[expert]}.lr"
            if all(p.lr == 0 for p in last):
                yield _finding(
                    "expert-not-learning",
                    own,
                    f"{what}its learning rate was 0 in its last {len(last)} steps.{part}",
                    f"Set {own} while it runs, or fewer warm-up steps in a new run",
                    "warning",
                )
            elif all(0 < p.grad_norm < 1e-7 for p in last):
                yield _finding(
                    "expert-not-learning",
                    f"multistage.{PANEL[expert]}",
                    f"{what}its gradients were next to 0 in its last {len(last)} steps.{part}",
                    "Check the weights of its datasets (a small datasets.weight gives small gradients); else this is a"
                    " fault worth reporting",
                    "warning",
                )
        if len(trained_experts(self._job)) == 2 and all(len(points) >= 300 for points in self._points.values()):
            trends = {e: _trend(points, 100) for e, points in self._points.items()}
            for expert, other in (EXPERTS, EXPERTS[::-1]):
                mine, theirs = trends[expert], trends[other]
                if theirs.ratio < 0.75 and theirs.z < -4 and abs(mine.ratio - 1) < 0.1 and abs(mine.z) < 2:
                    text = (
                        f"the loss of the {NAMES[expert]} expert stayed where it began ({mine.ratio - 1:+.1%}) while"
                        f" the other's fell ({theirs.ratio - 1:+.0%})."
                    )
                    yield _finding(
                        "expert-not-learning",
                        f"multistage.{PANEL[expert]}.lr",
                        text + (part if expert == "high_noise" else ""),
                        f"If its part does not show in the previews, raise multistage.{PANEL[expert]}.lr or its share"
                        " of the steps",
                    )

    def _overfit(self, step: int) -> Iterator[Finding]:
        job = self._job
        visits = median(self._visits.values()) if self._visits else 0
        knobs = (
            "Compare the previews of earlier checkpoints: the best is rarely the last. More varied clips and fewer"
            " steps help"
            + (
                "; then a smaller rank or learning rate"
                if job.training.dop
                else "; so does training.dop = true with a trigger word"
            )
        )
        for expert, points in self._points.items():
            if len(points) < 300:
                continue
            trend = _trend(points, 100)
            if trend.ratio < 0.4 and trend.z < -8 and visits >= 20:
                yield _finding(
                    "overfit",
                    "training.steps",
                    f"at like noise levels the loss of the {NAMES[expert]} expert is down to {trend.ratio:.0%} of what"
                    f" it began with, after {visits:.0f} visits of each clip: it knows the clips by heart",
                    knobs,
                    "warning",
                )
                return
            kept = [(p.bin, p.preservation) for p in points if p.preservation is not None]
            if len(kept) >= 400:
                even, quarter = smoothed(kept), len(kept) // 4
                # it begins at 0 and rises at first in every run
                drift = trend_of(even[quarter : 2 * quarter], even[-quarter:])
                if drift.ratio > 1.5 and drift.z > 6 and trend.ratio < 0.95:
                    yield _finding(
                        "overfit",
                        "training.steps",
                        f"the preservation loss of the {NAMES[expert]} expert rose by {drift.ratio - 1:.0%} while its"
                        f" loss on the clips fell to {trend.ratio:.0%}: it leaves the base model behind to fit the"
                        " clips",
                        knobs,
                        "warning",
                    )
                    return
        if step >= 3000 and visits >= 200 and len(self._visits) < 60:
            yield _finding(
                "overfit",
                "training.steps",
                f"{step} steps, {visits:.0f} visits of each of {len(self._visits)} clips: LoRAs begin to work only in"
                " scenes like their clips",
                knobs,
            )


class MotionSpeed:
    """Previews of another length than the training clips, or played at another rate than Wan's, show the motion at
    another speed; so do all of a LoRA whose clips were sped up to fit their frames.

    A LoRA moves by as much from frame to frame as its clips did, and these were spread over num_frames: in a preview of
    more frames the motion looks too fast beside its source, in one of fewer it is squeezed. "realtime" windows keep the
    clip's speed, whatever their length. Length and rate are judged apart, for half the frames at half the rate look
    like neither; only more frames that are played as much slower are as they should be.
    """

    def __init__(self, job: Job, speeds: Mapping[int, float]) -> None:
        self._job, self._speeds = job, speeds
        self._sped: set[str] = set()  # what the check before the run said of the clips' own speed

    def feed(self, event: Event) -> list[Finding]:
        data = event.data
        if event.kind == "changed":
            self._job = changed(self._job, data)
        if event.kind == "finding" and data["code"] == "speed-factor":
            self._sped.add(data["message"])
        return list(self._judge(data)) if event.kind == "sample" and data["step"] > 0 else []

    def _judge(self, data: dict[str, Any]) -> Iterator[Finding]:
        trained = {d.num_frames: d.sampling for d in self._job.datasets if d.num_frames > 1 and not d.regularization}
        if not trained:
            return
        field, frames = self._frames(data)
        near, rate = min(trained, key=lambda n: abs(n - frames)), self._job.sample.fps / WAN_FPS
        length, speed = (frames / near, self._speeds.get(near, 1.0)) if trained[near] == "uniform" else (1.0, 1.0)
        if (length > 1 and _near(speed) and _near(length * rate)) or (
            _near(length) and not _near(speed) and _near(speed * rate)
        ):
            return
        by_length = (field, f"{frames} frames, trained on {near}", f"{near}")
        by_rate = ("sample.fps", f"{self._job.sample.fps} frames a second, made at {WAN_FPS:g}", f"{WAN_FPS:g}")
        by_clips = ("datasets.sampling", f"clips that {near} frames show {speed:.1f}x as fast as they are", "")
        fast = [by_length] * (not _near(length)) + [by_rate] * (rate > SPEED) + [by_clips] * (speed > SPEED)
        slow = [by_rate] * (rate < 1 / SPEED) + [by_clips] * (speed < 1 / SPEED)
        for code, word, causes in (("motion-too-fast", "faster", fast), ("motion-too-slow", "slower", slow)):
            if causes:
                text = (
                    f"previews of {' and '.join(c[1] for c in causes)}: the motion will look {word} than in the clips"
                )
                fixes = [
                    f"Set {' and '.join(f'{c[0]} = {c[2]}' for c in causes if c[2])}, and judge the speed by those"
                    " previews"
                ] * any(c[2] for c in causes)
                if by_clips in causes:
                    true = near * speed  # frames at 16 a second
                    ways = ['datasets.sampling = "realtime"'] * (speed > 1) + [
                        f"datasets.num_frames = {nearest_frame_counts(round(true))[0]}"
                    ] * (true <= MOST_FRAMES)
                    fixes.append(f"{'t' if fixes else 'T'}rain in a new run with {' or '.join(ways)}")
                fix = "; ".join(fixes)
                if length > SPEED:
                    fix += (
                        f"; or leave them their frames and set sample.fps = {max(1, round(WAN_FPS / length))}, which"
                        " changes the playback alone"
                    )
                yield _finding(code, causes[0][0], "; ".join([text, *sorted(self._sped)]), fix)

    def _frames(self, data: dict[str, Any]) -> tuple[str, int]:
        """The field that a preview has its frames from, and how many. Its file is NN.mp4, after its prompt's place in
        the list."""
        panel, place = self._job.sample, PurePath(data["path"]).stem
        own = panel.prompts[int(place)].num_frames if place.isdecimal() and int(place) < len(panel.prompts) else None
        return (
            ("sample.num_frames", panel.num_frames)
            if own is None
            else (f"sample.prompts[{int(place)}].num_frames", own)
        )


def _near(factor: float) -> bool:
    return 1 / SPEED <= factor <= SPEED


def _trend(points: list[Point], most: int) -> Trend:
    """The main loss at like noise: the first points against the last, at most a third of all each."""
    even = smoothed([(p.bin, p.main) for p in points])
    stretch = min(most, len(even) // 3)
    return trend_of(even[:stretch], even[-stretch:])


def changed(job: Job, data: dict[str, Any]) -> Job:
    """The job after a `changed` event. A field that this version does not know changes nothing here."""
    try:
        return with_value(job, data["field"], data["new"])
    except UserError:
        return job


def _finding(code: str, field: str, message: str, fix: str, severity: Any = "advice") -> Finding:
    return Finding(code=code, severity=severity, field=field, message=message, fix=fix)
