"""Each trouble of the guide on a made-up run that has it, and silence on runs that are well."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp
from typing import Any

import pytest

from presets.diagnosis.diagnosis import Diagnosis
from presets.diagnosis.resources import TIMING, PreviewTime
from presets.diagnosis.robust_statistics import smoothed, trend_of
from presets.findings import Finding
from presets.job.expert_schedule import expert_at
from presets.job.schema import (
    DatasetPanel,
    ExpertPanel,
    Job,
    JobPanel,
    MultistagePanel,
    PromptPanel,
    SamplePanel,
    TargetPanel,
    TrainingPanel,
)
from presets.runs.events import Event


def job_of(
    kind: Any = "motion",
    *,
    training: dict | None = None,
    multistage: dict | None = None,
    rank: int = 16,
    frames: int = 41,
    sampling: Any = "uniform",
    sample: dict | None = None,
) -> Job:
    return Job(
        job=JobPanel(name="t", kind=kind),
        multistage=MultistagePanel(**(multistage or {})),
        training=TrainingPanel(**{"steps": 2000, **(training or {})}),
        target=TargetPanel(rank=rank),
        datasets=[DatasetPanel(path="clips", num_frames=frames, sampling=sampling)],
        sample=SamplePanel(
            **{"num_frames": 41, **(sample or {})}, prompts=[PromptPanel(prompt="orbit", ctrl_img="c.png")]
        ),
    )


@dataclass
class Made:
    """A made-up run: noisy losses around a level that depends on the timestep, as flow matching has them."""

    job: Job
    seed: int = 0
    clips: int = 15
    level: Callable[[str, int], float] = lambda expert, step: 1.0  # factor on the loss
    keeps: Callable[[str, int], float] | None = None  # preservation loss
    seconds: Callable[[int], dict[str, float]] = lambda step: {
        "data": 0.05,
        "vae": 1.0,
        "transformer": 6.0,
        "optimizer": 0.1,
    }
    ram: Callable[[int], float] = lambda step: 40.0
    vram: Callable[[int], float] = lambda step: 60.0
    norm: Callable[[str], float] = lambda expert: 0.3
    lr: Callable[[str, int], float] = lambda expert, step: 1e-4
    extra: dict[int, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)  # events after a step
    attempt: int = 1
    seq: int = 0
    time: float = 0.0

    def event(self, kind: Any, data: dict[str, Any]) -> Event:
        self.seq += 1
        return Event(seq=self.seq, time=self.time, run="r", attempt=self.attempt, kind=kind, data=data)

    def events(self, steps: int, first: int = 1) -> list[Event]:
        out = [self.event("started", {"resumed_from": first - 1})]
        for step in range(first, steps + 1):
            rng = random.Random(f"{self.seed}/{step}")
            expert = expert_at(self.job, step - 1)
            timestep = rng.uniform(900, 1000) if expert == "high_noise" else rng.uniform(0, 900)
            main = (0.05 + 0.4 * (1 - timestep / 1000)) * self.level(expert, step) * exp(rng.gauss(0, 0.35))
            parts = {"main": main} | (
                {"preservation": self.keeps(expert, step) * exp(rng.gauss(0, 0.3))} if self.keeps else {}
            )
            seconds = {part: value * exp(rng.gauss(0, 0.05)) for part, value in self.seconds(step).items()}
            seconds["total"] = sum(seconds.values())
            self.time += seconds["total"]
            clip = f"0/{rng.randrange(self.clips)}.mp4@{rng.choice([512, 768])}"
            out.append(
                self.event(
                    "step",
                    {
                        "step": step,
                        "expert": expert,
                        "loss": sum(parts.values()),
                        "parts": parts,
                        "lr": self.lr(expert, step),
                        "grad_norm": self.norm(expert) * exp(rng.gauss(0, 0.4)),
                        "timestep": timestep,
                        "seconds": seconds,
                        "vram_gib": self.vram(step) + rng.random() * 0.2,
                        "ram_gib": self.ram(step) + rng.random() * 0.2,
                        "clips": [clip],
                    },
                )
            )
            out += [self.event(kind, data) for kind, data in self.extra.get(step, [])]
        return out


def diagnose(made: Made, steps: int) -> list[Finding]:
    diagnosis = Diagnosis(made.job, ram_total_gib=128.0, vram_total_gib=80.0)
    return [finding for event in made.events(steps) for finding in diagnosis.feed(event)]


def codes(made: Made, steps: int) -> list[str]:
    return [finding.code for finding in diagnose(made, steps)]


def samples(*steps: int) -> dict[int, list[tuple[str, dict[str, Any]]]]:
    return {
        step: [
            (
                "sample",
                {"step": step, "prompt": "orbit", "path": f"samples/step_{step:09d}/00.mp4", "poster": "", "seed": 1},
            )
        ]
        for step in steps
    }


HEALTHY = {
    "constant noisy losses": Made(job_of()),
    "a normal decay": Made(job_of(), level=lambda e, s: 0.75 + 0.25 * exp(-s / 400)),
    "only one expert falls a little": Made(
        job_of(), level=lambda e, s: 1.0 if e == "high_noise" else 0.85 + 0.15 * exp(-s / 300)
    ),
    "a character with preservation that settles": Made(
        job_of("character"), keeps=lambda e, s: 0.02 * (1 - exp(-s / 150)), level=lambda e, s: 0.8 + 0.2 * exp(-s / 400)
    ),
    "one expert alone": Made(job_of("style", multistage={"high_noise": False})),
    "warm-up and cosine": Made(
        job_of(training={"lr_scheduler": "cosine", "warmup_steps": 50}), lr=lambda e, s: 1e-4 * min(1, (s - 1) / 50)
    ),
    "the cache fills, then stays": Made(job_of(), ram=lambda s: 40 + 6 * min(1, s / 120)),
    "memory that trickles": Made(job_of(), ram=lambda s: 40 + s * 0.004, vram=lambda s: 60 + s * 0.004),
    "short steps, half of each for the data": Made(job_of(), seconds=lambda s: {"data": 0.15, "transformer": 0.15}),
    "two sizes of step": Made(
        job_of(), seconds=lambda s: {"data": 0.05, "vae": 1.0, "transformer": 6.0 + 5 * (s % 3 == 0), "optimizer": 0.1}
    ),
    "slower after a replan that was told": Made(
        job_of(),
        seconds=lambda s: {"data": 0.05, "vae": 1.0, "transformer": 6.0 if s < 300 else 9.0},
        extra={300: [("replanned", {"why": "", "old": "", "new": ""})]},
    ),
    "more frames, played as much slower": Made(job_of(sample={"num_frames": 81, "fps": 8}), extra=samples(50, 100)),
    "real-time windows of another length": Made(
        job_of(sampling="realtime", sample={"num_frames": 81}), extra=samples(50, 100)
    ),
    "previews that are repaired on a resume": Made(
        job_of(sample={"num_frames": 81, "fps": 24}),
        extra={
            40: [
                ("changed", {"field": "sample.num_frames", "old": 81, "new": 41, "step": 40}),
                ("changed", {"field": "sample.fps", "old": 24, "new": 16, "step": 40}),
            ]
        }
        | samples(50),
    ),
    "a slow minute": Made(
        job_of(), seconds=lambda s: {"data": 0.05, "transformer": 6.0 if not 300 < s < 320 else 20.0}
    ),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_stays_silent(name, seed):
    made = HEALTHY[name]
    made.seed, made.seq, made.time = seed, 0, 0.0
    assert diagnose(made, 600) == []


SICK = {
    "motion too fast": (
        "motion-too-fast",
        Made(job_of(frames=81, sample={"num_frames": 41}), extra=samples(50, 100)),
        "41 frames, trained on 81: the motion will look faster",
    ),
    "motion too fast, as the guide has it": (
        "motion-too-fast",
        Made(job_of(frames=41, sample={"num_frames": 81}), extra=samples(50, 100)),
        "81 frames, trained on 41: the motion will look faster",
    ),
    "previews played too fast": (
        "motion-too-fast",
        Made(job_of(sample={"fps": 24}), extra=samples(50)),
        "24 frames a second, made at 16: the motion will look faster",
    ),
    "previews played too slowly": (
        "motion-too-slow",
        Made(job_of(sample={"fps": 8}), extra=samples(50)),
        "8 frames a second, made at 16: the motion will look slower",
    ),
    "both, and the same way": (
        "motion-too-fast",
        Made(job_of(sample={"num_frames": 21, "fps": 24}), extra=samples(50)),
        "21 frames, trained on 41 and 24 frames a second, made at 16: the motion will look faster",
    ),
    "high noise off": ("camera-does-not-move", Made(job_of(multistage={"high_noise": False})), "none of 200 steps"),
    "bias towards low noise": (
        "camera-does-not-move",
        Made(job_of(training={"timestep_bias": "low_noise"})),
        "low noise",
    ),
    "a small share of high noise": (
        "camera-does-not-move",
        Made(job_of(multistage={"low": ExpertPanel(share=9.0)})),
        "of 200 steps",
    ),
    "low noise off for a character": (
        "detail-worse",
        Made(job_of("character", multistage={"low_noise": False})),
        "none of 200 steps",
    ),
    "a learning rate that breaks faces": ("detail-worse", Made(job_of("style", training={"lr": 1e-3})), "0.001"),
    "bias towards high noise for a character": (
        "detail-worse",
        Made(job_of("character", training={"timestep_bias": "high_noise"})),
        "late timesteps",
    ),
    "a small rank for a face": ("detail-worse", Made(job_of("character", rank=4)), "rank 4"),
    "no learning rate": (
        "expert-not-learning",
        Made(job_of(), lr=lambda e, s: 0.0 if e == "low_noise" else 1e-4),
        "low-noise",
    ),
    "next to no gradient": (
        "expert-not-learning",
        Made(job_of(), norm=lambda e: 1e-9 if e == "high_noise" else 0.3),
        "Camera and motion",
    ),
    "no gradient": (
        "no-gradient",
        Made(job_of(), norm=lambda e: 0.0 if e == "high_noise" else 0.3),
        "the high-noise expert's LoRA gets no gradient",
    ),
    "one flat, the other falls": (
        "expert-not-learning",
        Made(job_of(), level=lambda e, s: 1.0 if e == "high_noise" else 0.5 + 0.5 * exp(-s / 150)),
        "high-noise",
    ),
    "clips known by heart": (
        "overfit",
        Made(job_of("character"), clips=5, level=lambda e, s: exp(-s / 250)),
        "visits of each clip",
    ),
    "preservation lost": (
        "overfit",
        Made(job_of("character"), keeps=lambda e, s: 0.01 * s / 100, level=lambda e, s: 0.5 + 0.5 * exp(-s / 300)),
        "preservation",
    ),
    "slower with time": (
        "slower-with-time",
        Made(job_of(), seconds=lambda s: {"data": 0.05, "vae": 1.0, "transformer": 6.0 * (1 + s / 500)}),
        "transformer",
    ),
    "memory creeps": ("memory-creeping", Made(job_of(), ram=lambda s: 40 + s * 0.05), "more steps"),
    "memory of the card creeps": ("memory-creeping", Made(job_of(), vram=lambda s: 60 + s * 0.05), "the card's memory"),
    "data comes late": (
        "data-starving",
        Made(job_of(), seconds=lambda s: {"data": 4.0, "vae": 1.0, "transformer": 6.0}),
        "clips to be decoded",
    ),
    "memory runs out again and again": (
        "memory-tight",
        Made(job_of(), extra={s: [("replanned", {"why": "", "old": "", "new": ""})] for s in (10, 20)}),
        "twice",
    ),
}


@pytest.mark.parametrize("name", SICK)
def test_each_trouble_is_named_once_with_its_numbers(name):
    code, made, words = SICK[name]
    found = [f for f in diagnose(made, 1100) if f.code == code]
    assert len(found) == 1 and words in found[0].message and found[0].fix, found


def test_few_frames_at_a_slow_rate_do_not_hide_each_other():
    found = diagnose(Made(job_of(frames=41, sample={"num_frames": 21, "fps": 8}), extra=samples(50, 100)), 150)
    assert [(f.code, f.field, f.fix.partition(",")[0]) for f in found] == [
        ("motion-too-fast", "sample.num_frames", "Set sample.num_frames = 41"),
        ("motion-too-slow", "sample.fps", "Set sample.fps = 16"),
    ]


SPED = {
    "sped up, played as trained": (
        job_of(),
        1.8,
        [
            (
                "motion-too-fast",
                "clips that 41 frames show 1.8x as fast",
                'Train in a new run with datasets.sampling = "realtime" or datasets.num_frames = 73',
            )
        ],
    ),
    "sped up beyond 81 frames": (
        job_of(),
        2.4,
        [("motion-too-fast", "2.4x", 'Train in a new run with datasets.sampling = "realtime"')],
    ),
    "slowed down": (job_of(), 0.5, [("motion-too-slow", "0.5x", "Train in a new run with datasets.num_frames = 17")]),
    "sped up, and of other frames": (
        job_of(sample={"num_frames": 81}),
        2.4,
        [
            (
                "motion-too-fast",
                "81 frames, trained on 41 and clips that",
                "Set sample.num_frames = 41, and judge the speed by those previews; train in a new run with",
            )
        ],
    ),
    "played slower by as much": (job_of(sample={"fps": 8}), 2.0, []),
    "nearly true": (job_of(), 1.2, []),
    "in real time": (job_of(sampling="realtime"), 2.4, []),
}


@pytest.mark.parametrize("name", SPED)
def test_clips_that_were_sped_up_are_told_once_previews_show_it(name):
    job, speed, expected = SPED[name]
    diagnosis = Diagnosis(job, speeds={41: speed})
    found = [f for event in Made(job, extra=samples(50, 100)).events(120) for f in diagnosis.feed(event)]
    assert len(found) == len(expected)
    for finding, (code, words, fix) in zip(found, expected, strict=True):
        assert finding.code == code and words in finding.message and finding.fix.startswith(fix), finding


def test_a_way_to_see_the_true_speed_without_other_frames_is_named():
    (found,) = diagnose(Made(job_of(sample={"num_frames": 81}), extra=samples(50)), 60)
    assert "Set sample.num_frames = 41" in found.fix and "sample.fps = 8" in found.fix


def test_many_visits_of_few_clips_are_named_though_no_loss_falls():
    made = Made(job_of(training={"steps": 4000}), clips=4)
    assert [
        (f.code, "3000 steps" in f.message and "of each of 8 clips" in f.message) for f in diagnose(made, 3100)
    ] == [("overfit", True)]
    assert codes(Made(job_of(training={"steps": 4000}), clips=40), 3100) == []


def test_each_preview_is_judged_by_the_frames_of_its_own_prompt():
    """By its place in the list: two prompts may have the same words."""
    job = job_of()
    job.sample.prompts.append(PromptPanel(prompt="orbit", ctrl_img="c.png", num_frames=81))
    assert diagnose(Made(job, extra=samples(50)), 60) == []
    second = {"step": 50, "prompt": "orbit", "path": "samples/step_000000050/01.mp4", "poster": "", "seed": 1}
    assert [f.field for f in diagnose(Made(job, extra={50: [("sample", second)]}), 60)] == [
        "sample.prompts[1].num_frames"
    ]


def test_previews_that_take_the_time():
    made = Made(job_of())
    events, out = Diagnosis(made.job), []
    for event in made.events(150):
        out += events.feed(event)
        if event.kind == "step" and event.data["step"] % 50 == 0:
            made_at = event.time + 900
            out += events.feed(
                Event(
                    seq=0,
                    time=made_at,
                    run="r",
                    attempt=1,
                    kind="sample",
                    data={"step": event.data["step"], "prompt": "orbit", "path": "samples/00.mp4"},
                )
            )
    assert [f.code for f in out] == ["previews-dominate"]


def test_previews_before_the_first_step_take_no_time_of_training():
    told = [("started", 0.0, {}), ("sample", 900.0, {"step": 0})]
    for step in (1, 2, 3):
        told += [
            ("step", 900.0 + 100 * step - 40, {"step": step, "seconds": {"total": 60.0}}),
            ("sample", 900.0 + 100 * step, {"step": step}),
        ]
    watch = PreviewTime()
    found = [
        f
        for kind, at, data in told
        for f in watch.feed(Event(seq=0, time=at, run="r", attempt=1, kind=kind, data=data))
    ]
    assert found == [], "120 s of previews beside 180 s of steps"


def test_a_resume_finds_the_same_as_no_resume():
    """Up to step 620, on from 600: the events after 600 are cut off, the diagnosis is built anew from the rest and goes
    on."""

    def made() -> Made:
        return Made(job_of("character"), clips=5, level=lambda e, s: exp(-s / 250))

    straight = diagnose(made(), 1100)
    before = Diagnosis(made().job)
    first = [f for event in made().events(600) for f in before.feed(event)]
    second, again = Diagnosis(made().job), made()
    for event in again.events(600):
        second.feed(event)
    again.attempt = 2
    then = [f for event in again.events(1100, first=601) for f in second.feed(event)]
    assert [f for f in first + then if f.code not in TIMING] == [f for f in straight if f.code not in TIMING] != []


def mixed(made: Made, rng: random.Random) -> list[Event]:
    """The same steps, each of four clips out of two datasets and three resolutions: there are 126 such mixtures for
    either expert. Large clips take longer."""
    events = made.events(600)
    for event in events:
        if event.kind == "step":
            clips = [f"{rng.randrange(2)}/{rng.randrange(9)}.mp4@{rng.choice([512, 768, 1024])}" for _ in range(4)]
            cost = sum(int(clip.rpartition("@")[2]) ** 2 for clip in clips) / 4 / 512**2
            event.data.update(
                clips=clips, seconds={part: value * cost for part, value in event.data["seconds"].items()}
            )
    return events


@pytest.mark.parametrize(("slower", "expected"), [(True, ["slower-with-time"]), (False, [])])
@pytest.mark.parametrize("seed", range(4))
def test_steps_of_many_mixtures_are_judged_too(slower, expected, seed):
    made = Made(job_of(), seconds=lambda s: {"data": 0.05, "vae": 1.0, "transformer": 6.0 * (1 + slower * s / 300)})
    diagnosis = Diagnosis(made.job)
    assert [f.code for event in mixed(made, random.Random(seed)) for f in diagnosis.feed(event)] == expected


def test_slowness_is_judged_within_an_attempt():
    made, diagnosis = Made(job_of()), Diagnosis(job_of())
    for event in made.events(200):
        assert diagnosis.feed(event) == []
    made.attempt, made.seconds = 2, lambda s: {"data": 0.05, "vae": 3.0, "transformer": 18.0}
    for event in made.events(400, first=201):
        assert diagnosis.feed(event) == []


def test_a_change_while_it_runs_is_taken_in():
    made = Made(
        job_of("style", training={"lr": 1e-3}),
        extra={100: [("changed", {"field": "training.lr", "old": 1e-3, "new": 1e-4, "step": 100})]},
    )
    assert codes(made, 500) == []


def test_trends():
    rng = random.Random(1)
    flat, high = ([rng.gauss(m, 0.3) for _ in range(200)] for m in (1.0, 1.3))
    assert abs(trend_of(flat[:100], flat[100:]).z) < 4 and trend_of(flat, high).z > 5
    assert trend_of([1.0] * 50, [1.0] * 50).z == 0
    assert smoothed([(0, 1.0), (1, 10.0), (0, 1.0), (1, 20.0), (1, 10.0)]) == [1.0, 1.0, 1.0, 2.0, 1.0]
