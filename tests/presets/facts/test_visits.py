"""How often clips are seen: against a count of the sampler's own draws, and said honestly."""

from collections import Counter
from pathlib import Path

import pytest

from engine.data.dataset import build_dataset
from engine.data.sampler import BatchSampler, turn_of
from presets.facts.facts import Facts
from presets.facts.visits import texts_of, times, unseen_text, visits_of
from presets.job.expert_schedule import expert_at
from presets.job.schema import Job
from presets.rules.check import check_job
from tests.helpers.facts import clip, clips, facts, image, job, real_model, tiny_model

FEW = {"steps": 40, "gradient_accumulation": 2, "batch_size": 3}


@pytest.mark.parametrize(
    ("made", "known"),
    [
        (job(training={"steps": 30}, datasets=[{"resolutions": [512]}]), facts(clips(60))),
        (job(training={"steps": 400}, multistage={"switch_every": 3}), facts(clips(7))),
        (job(training=FEW, datasets=[{"resolutions": [256, 512], "repeats": 2}]), facts(clips(9))),
        (
            job(training=FEW, datasets=[{"repeats": 3}, {"regularization": True}]),
            facts(clips(10), [image(f"{i}.png") for i in range(17)]),
        ),
        (
            job(
                training={"steps": 30},
                datasets=[{"sampling": "realtime", "num_frames": 17, "windows": 3, "resolutions": [512]}],
            ),
            facts([*clips(20, frames=96, fps=24.0), *(clip(f"short{i}.mp4", frames=36, fps=24.0) for i in range(20))]),
        ),
    ],
    ids=["half an epoch", "many epochs", "resolutions and repeats", "regularization", "windows"],
)
def test_as_often_as_the_sampler_draws_them(made: Job, known: Facts):
    known = Facts(base=Path("/clips"), datasets=list(known.datasets))
    items = build_dataset(made, Path("/"), known.datasets)
    sampler = BatchSampler(items, made.training.batch_size, 1, turn_of(made))
    drawn: Counter[tuple[int, str]] = Counter()
    ever: dict[int, set[str]] = {}
    for index in range(made.training.steps * made.training.gradient_accumulation):
        expert = expert_at(made, index // made.training.gradient_accumulation)
        for draw in sampler.batch(index):
            drawn[draw.item.dataset, expert] += 1
            ever.setdefault(draw.item.dataset, set()).add(draw.item.path)
    for seen in visits_of(made, known.datasets):
        for expert, number in seen.by_expert.items():
            assert number == pytest.approx(drawn[seen.dataset, expert] / seen.clips, rel=0.2)
        assert seen.each == pytest.approx(sum(n for (d, _), n in drawn.items() if d == seen.dataset) / seen.clips, 0.1)
        assert seen.unseen == pytest.approx(1 - len(ever[seen.dataset]) / seen.clips, abs=0.1)


def test_what_is_said():
    (seen,) = visits_of(job(training={"steps": 2500}, datasets=[{"resolutions": [512]}]), facts(clips(5000)).datasets)
    assert seen.text == "each of 5000 clips is seen 0.5 times: about half are never seen"
    (seen,) = visits_of(job(training={"steps": 1000}, datasets=[{"resolutions": [512]}]), facts(clips(5000)).datasets)
    assert seen.text == "each of 5000 clips is seen 0.2 times: about 4000 are never seen"
    (seen,) = visits_of(job(training={"steps": 1000}, datasets=[{"resolutions": [512]}]), facts(clips(12)).datasets)
    assert seen.text == "each of 12 clips is seen 83 times"
    assert [times(n) for n in (0.004, 1.0, 2.46, 9.6, 0)] == ["0.004 times", "once", "2.5 times", "10 times", "0 times"]
    assert visits_of(job(), [facts([]).datasets[0]]) == []


def test_of_several_datasets_each_is_named_and_what_is_never_seen_is_added_up():
    both = [{"resolutions": [512]}, {"resolutions": [512], "path": "more"}]
    found = visits_of(job(training={"steps": 6}, datasets=both), [facts(clips(6)).datasets[0]] * 2)
    assert texts_of(found) == [
        "datasets[0]: each of 6 clips is seen 0.5 times: about half are never seen",
        "datasets[1]: each of 6 clips is seen 0.5 times: about half are never seen",
    ]
    assert unseen_text(found) == "about half are never seen" and unseen_text([]) == ""
    few = visits_of(job(training={"steps": 11}, datasets=both), [facts(clips(6)).datasets[0]] * 2)
    assert unseen_text(few) == "about 1 is never seen"


def told(made: Job, known: Facts) -> list[tuple[str, str, str]]:
    return [
        (f.code, f.message, f.fix)
        for f in check_job(made, known)
        if f.code in ("clips-hardly-seen", "clips-seldom-seen")
    ]


def test_the_findings_name_the_steps_and_the_clips():
    made = job(training={"steps": 2500}, datasets=[{"resolutions": [512]}])
    assert told(made, facts(clips(5000))) == [
        (
            "clips-hardly-seen",
            "in 2500 steps, each of 5000 clips is seen 0.5 times: about half are never seen; by the high noise expert"
            " 0.2 times",
            "For once by each expert, set training.steps = 10000, or keep the 1250 best clips",
        )
    ]
    (found,) = told(made, facts(clips(500)))
    assert found[0] == "clips-seldom-seen" and "training.steps = 5000" in found[2] and "keep the 250 best" in found[2]
    assert told(made, facts(clips(240))) == [] and told(made, facts(clips(5000), model=tiny_model())) == []


def test_a_share_of_an_expert_and_regularization_count():
    lean = {"steps": 2500}
    panels = [{"resolutions": [512]}]
    shared = job(training=lean, datasets=panels)
    shared.multistage.high.share = 0.5
    assert told(shared, facts(clips(240)))[0][0] == "clips-seldom-seen"
    beside = job(training=lean, datasets=[{"resolutions": [512]}, {"resolutions": [512], "regularization": True}])
    ((_, message, _),) = told(beside, facts(clips(150), clips(1000), model=real_model()))
    assert message.startswith("datasets[0]: ")
