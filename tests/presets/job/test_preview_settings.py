"""What a prompt says for itself reaches the planner, the disk's need and the knobs as it does the trainer."""

import pytest

from presets.clips.geometry import Bucket
from presets.job.preview_settings import (
    largest_preview,
    low_guidance,
    preview_seed,
    preview_sets,
    preview_size_of,
    previews_due,
)
from presets.planner.cards import card_hardware, find_card
from presets.planner.remedies import remedies
from presets.planner.sizes import ExpertShape, disk_need
from presets.planner.workload import workload_of
from presets.runs.events import Event
from presets.runs.history import History
from tests.helpers.facts import facts, job

OWN = {
    "prompts": [
        {"prompt": "a", "ctrl_img": "a.png"},
        {"prompt": "b", "ctrl_img": "b.png", "width": 1280, "height": 704, "num_frames": 81, "seed": 0},
        {"prompt": "c", "ctrl_img": "c.png", "num_frames": 1},
    ]
}


def test_a_prompt_takes_what_it_does_not_say_from_the_panel():
    panel = job(sample=OWN | {"seed": 10}).sample
    assert [preview_size_of(panel, i) for i in range(3)] == [(768, 768, 41), (1280, 704, 81), (768, 768, 1)]
    assert [preview_seed(panel, i) for i in range(3)] == [10, 0, 12], "a seed of its own moves no other one"
    panel.walk_seed = False
    assert [preview_seed(panel, i) for i in range(3)] == [10, 0, 10]
    assert low_guidance(panel) == panel.guidance
    panel.guidance_low = 0.0
    assert low_guidance(panel) == 0.0


def test_the_plan_is_made_for_the_largest_preview():
    made = job(sample=OWN)
    assert largest_preview(made) == (1280, 704, 81)
    previews = workload_of(made).previews
    assert previews is not None and previews.bucket == Bucket(81, 704, 1280) and previews.guided
    previews = workload_of(job(sample=OWN | {"guidance": 1.0, "guidance_low": 2.0})).previews
    assert previews is not None and previews.guided
    previews = workload_of(job(sample=OWN | {"guidance": 1.0})).previews
    assert previews is not None and not previews.guided


@pytest.mark.parametrize(
    ("steps", "every", "first", "sets"),
    [
        (1000, 250, True, 5),
        (1000, 300, True, 5),
        (1000, 250, False, 4),
        (1000, 0, True, 2),
        (5, 7, False, 1),
        (1, 1, True, 2),
    ],
)
def test_everyone_counts_the_sets_of_previews_that_the_trainer_makes(steps: int, every: int, first: bool, sets: int):
    made = job(training={"steps": steps}, sample=OWN | {"every": every, "first": first})
    by_the_trainer = [previews_due(made, step) for step in range(steps)] + [True]  # and after the last step
    assert preview_sets(made) == sum(by_the_trainer) == sets
    previews = workload_of(made).previews
    assert previews is not None and previews.sets == sets
    once = job(training={"steps": steps}, sample=OWN | {"every": 0, "first": False})
    assert disk_need(made, ExpertShape()).samples == pytest.approx(sets * disk_need(once, ExpertShape()).samples)
    without = job(training={"steps": steps}, sample={"every": every, "first": first})
    assert preview_sets(without) == 0 and not any(previews_due(without, step) for step in range(steps))


def test_the_disk_holds_each_preview_at_its_size():
    one, three = (disk_need(job(sample={"prompts": OWN["prompts"][:n]}), ExpertShape()).samples for n in (1, 3))
    assert three > 3 * one


def test_a_large_prompt_is_a_knob_of_its_own():
    hardware = card_hardware(find_card("4090"), ram=128 * 2**30)
    turned = [k.set for k in remedies(job(sample=OWN), facts(), hardware, short="vram")]
    assert {
        "sample.width": 512,
        "sample.height": 512,
        "sample.prompts[1].width": 512,
        "sample.prompts[1].height": 512,
    } in turned


def test_previews_of_a_branch_that_was_left_do_not_count():
    history = History()

    def tell(seq: int, kind: str, **data) -> None:
        history.add(Event(seq=seq, time=0.0, run="r", attempt=1, kind=kind, data=data))

    for step in (0, 2, 4):
        tell(step + 1, "sample", step=step, path=f"samples/{step}.mp4", prompt="orbit", seed=step)
    tell(6, "started", resumed_from=2)
    assert {path: data["seed"] for path, data in history.samples.items()} == {"samples/0.mp4": 0, "samples/2.mp4": 2}
