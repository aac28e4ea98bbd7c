"""What a prompt says for itself reaches the planner, the disk's need and the knobs as it does the trainer. Presets, and
the noise levels that previews go through."""

import tomllib

import numpy as np
import pytest

from presets.clips.geometry import Bucket
from presets.job.preview_settings import (
    OFFICIAL_NEGATIVE,
    Sampling,
    expert_at,
    largest_preview,
    noise_levels,
    passes_of,
    preview_seed,
    preview_sets,
    preview_size_of,
    previews_due,
    sampling_of,
)
from presets.job.schema import SamplePanel
from presets.job.toml_file import dump_job, parse_job
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


def test_a_preset_says_what_is_left_out():
    official = Sampling("unipc", 40, 3.5, 3.5, 5.0, OFFICIAL_NEGATIVE)
    assert sampling_of(SamplePanel()) == Sampling("flowmatch", 25, 4.0, 4.0, 5.0, "")
    assert sampling_of(SamplePanel(preset="quick")) == Sampling("flowmatch", 4, 1.0, 1.0, 5.0, "")
    assert sampling_of(SamplePanel(preset="official")) == official
    assert OFFICIAL_NEGATIVE.startswith("色调艳丽，过曝，静态") and OFFICIAL_NEGATIVE.endswith("背景人很多，倒着走")
    own = SamplePanel(preset="official", steps=30, guidance=2.0, negative="", shift=3.0, sampler="flowmatch")
    assert sampling_of(own) == Sampling("flowmatch", 30, 2.0, 2.0, 3.0, ""), "what is given wins, also the empty text"
    assert sampling_of(SamplePanel(guidance_low=0.0))[2:4] == (4.0, 0.0)
    assert sampling_of(SamplePanel(guidance=2.0, guidance_low=3.0))[2:4] == (2.0, 3.0)


def test_a_file_keeps_the_preset_and_what_was_given_beside_it():
    text = '[job]\nname = "o"\n[[datasets]]\npath = "c"\n[sample]\npreset = "official"\nsteps = 30\n'
    kept = tomllib.loads(dump_job(parse_job(text)))
    assert {name: kept["sample"].get(name) for name in ("preset", *Sampling._fields) if name in kept["sample"]} == {
        "preset": "official",
        "steps": 30,
    }
    assert parse_job(dump_job(parse_job(text))) == parse_job(text)


@pytest.mark.parametrize("steps", [1, 4, 8, 25, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_noise_levels_are_wans_own(steps: int, shift: float):
    """Its get_sampling_sigmas, and within what whole timesteps hide the levels that its UniPC goes through, which
    begin at 0.999 for 1."""
    levels = noise_levels(SAMPLING._replace(steps=steps, shift=shift))
    x = np.linspace(1, 0, steps + 1)[:-1]
    np.testing.assert_allclose(levels, shift * x / (1 + (shift - 1) * x), rtol=1e-14)
    x = np.linspace(0.999, 0, steps + 1)[:-1]
    assert np.abs(np.array(levels) - shift * x / (1 + (shift - 1) * x)).max() <= 1.001e-3


SAMPLING = sampling_of(SamplePanel())


@pytest.mark.parametrize(("steps", "high"), [(4, 2), (8, 3), (25, 9), (40, 15), (14, 6)])
def test_how_many_steps_each_expert_has(steps: int, high: int):
    sampling = SAMPLING._replace(steps=steps)
    assert passes_of(sampling._replace(guidance=1.0, guidance_low=1.0), 0.9) == {
        "high_noise": high,
        "low_noise": steps - high,
    }
    assert passes_of(sampling._replace(guidance_low=1.0), 0.9)["high_noise"] == 2 * high


def test_few_steps_meet_what_accelerators_were_made_for():
    assert [round(1000 * s, 1) for s in noise_levels(SAMPLING._replace(steps=4))] == [1000.0, 937.5, 833.3, 625.0]


def test_a_level_on_the_boundary_is_high_noise():
    """9/14 of the way, shifted by 5, is 0.9 exactly, which floats alone would miss."""
    levels = noise_levels(SAMPLING._replace(steps=14))
    assert levels[5] == 0.9 and [expert_at(s, 0.9) for s in levels[5:7]] == ["high_noise", "low_noise"]


def test_the_plan_counts_the_passes_of_each_expert():
    def passes(**sample) -> int:
        previews = workload_of(job(sample=OWN | sample)).previews
        assert previews is not None
        return previews.passes

    assert passes() == 50
    assert passes(preset="official") == 80
    assert passes(guidance_low=1.0) == 9 * 2 + 16
    assert passes(guidance_low=1.0, shift=1.0) == 3 * 2 + 22
    whole = workload_of(job(model={"boundary": 0.5}, sample=OWN | {"guidance_low": 1.0})).previews
    assert whole is not None and whole.passes == 21 * 2 + 4


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
