"""Recommended jobs: complete, without errors, and every value with its reason, over kinds, machines and clips."""

import itertools
from collections.abc import Iterator

import msgspec
import pytest

from presets.clips.clip_facts import ClipFacts
from presets.facts.facts import Facts
from presets.facts.held_out import wanted
from presets.job.fields import FIELDS
from presets.job.preview_settings import sampling_of
from presets.job.schema import Kind
from presets.job.toml_file import dump_job, get_value, parse_job
from presets.recipes.recipe import load_recipe, load_tiers, tier_for
from presets.recipes.recommend import Recommendation, made_up_word, plain_job, recommend
from presets.rules.check import check_job
from tests.helpers.facts import clip, clips, facts, gpu, image, machine, tiny_model

pytestmark = pytest.mark.process  # takes seconds

KINDS: list[Kind] = ["motion", "style", "character"]
MACHINES = {
    "no GPU": machine(problem="no driver"),
    "12 GB": machine(gpu(12)),
    "24 GB": machine(gpu(24)),
    "32 GB": machine(gpu(32)),
    "48 GB": machine(gpu(47.5)),
    "80 GB": machine(gpu(79.6)),
    "141 GB": machine(gpu(140)),
}
CLIPS: dict[str, list[ClipFacts]] = {
    "none": [],
    "hd": clips(20, frames=150, fps=30, width=1280, height=720),
    "long": clips(30, frames=720, fps=24, width=1920, height=1080),
    "just enough": clips(10, frames=41, width=832, height=480),
    "portrait": clips(12, frames=81, width=720, height=1280),
    "tiny": clips(12, frames=48, width=96, height=64),
    "short": [*clips(11, frames=90, fps=24), clip("s.mp4", frames=30, fps=24)],
    "very short": clips(12, frames=7),
    "few": clips(3, frames=60, fps=24),
    "mixed sizes": [
        *clips(10, frames=100, fps=25, width=1280, height=720),
        clip("small.mp4", frames=100, fps=25, width=320, height=240),
    ],
    "images": [image(f"{i}.png", width=1024, height=1024) for i in range(15)],
    "images and clips": [*clips(10, frames=100, fps=25), image()],
    "60 fps": clips(20, frames=300, fps=60),
}


def made(kind: Kind, on: str = "80 GB", of: str = "hd") -> Recommendation:
    return recommend(kind, MACHINES[on], CLIPS[of], name="orbit", clips_path="clips")


def known(on: str, of: str) -> Facts:
    return facts(CLIPS[of] or clips(), machine=MACHINES[on])


def in_pairs() -> Iterator[object]:
    """Each kind with each machine and each sort of clips, and every second pair of these two by one of the kinds; the
    others are for make thorough."""
    for (i, on), (j, of), (k, kind) in itertools.product(*map(enumerate, (MACHINES, CLIPS, KINDS))):
        met = (i + j) % len(KINDS) == k and (i + j) % 2 == 0
        yield pytest.param(kind, on, of, marks=[] if met else [pytest.mark.thorough])


@pytest.mark.parametrize(("kind", "on", "of"), in_pairs())
def test_a_recommended_job_has_no_errors_and_reasons_for_all_it_changes(kind, on, of):
    found = made(kind, on, of)
    plain = plain_job(kind, "orbit", "clips")
    lists = ("sample.prompts", "target.layers", "model.merge")  # empty in a new job
    fields = [p.replace("datasets.", "datasets[0].") for p in FIELDS if not p.startswith(lists)]
    differing = {p for p in fields if get_value(found.job, p) != get_value(plain, p)}
    assert differing - set(found.reasons) == set()
    for path, reason in found.reasons.items():
        assert path in fields and reason and not reason.endswith("."), (path, reason)
    errors = [f for f in check_job(found.job, known(on, of)) if f.severity == "error"]
    if on == "no GPU":
        errors = [f for f in errors if f.code != "gpu-missing"]
    assert errors == []
    assert parse_job(dump_job(found.job)) == found.job


@pytest.mark.parametrize(
    ("kind", "on", "of"), itertools.product(KINDS, ["24 GB", "80 GB"], ["hd", "just enough", "portrait"])
)
def test_good_clips_give_no_warning_but_memory_and_speed(kind, on, of):
    found = [f for f in check_job(made(kind, on, of).job, known(on, of)) if f.severity != "advice"]
    allowed = {"trigger-missing-in-captions"} | ({"speed-factor"} if kind == "motion" and on == "24 GB" else set())
    assert {f.code for f in found} <= allowed


@pytest.mark.parametrize("kind", KINDS)
def test_the_guide_s_values(kind):
    job = made(kind, "24 GB").job
    assert (job.target.rank, job.training.lr, job.training.weight_decay, job.training.loss) == (16, 1e-4, 1e-4, "mse")
    assert job.multistage.high_noise and job.multistage.low_noise and job.multistage.switch_every == 10
    sampling = sampling_of(job.sample)
    assert (job.save.every, job.sample.every, sampling.steps, job.sample.seed, job.sample.fps) == (
        250,
        250,
        25,
        42,
        16,
    )
    assert 4 <= job.save.keep <= 6 and 3.5 <= sampling.guidance <= 4
    assert job.datasets[0].resolutions == [512] and 0.05 <= job.datasets[0].caption_dropout <= 0.1
    assert not (
        job.datasets[0].cache_latents
        or job.datasets[0].flip_x
        or job.datasets[0].flip_y
        or job.training.cache_text_embeddings
        or job.training.unload_text_encoder
    )
    assert job.sample.num_frames == job.datasets[0].num_frames
    expected = {
        "motion": ("linear", "balanced", False),
        "style": ("linear", "high_noise", True),
        "character": ("sigmoid", "balanced", True),
    }
    assert (job.training.timestep_type, job.training.timestep_bias, job.training.dop) == expected[kind]
    assert not job.training.dop or (
        job.job.trigger
        and job.training.dop_multiplier == 1
        and job.training.dop_class == {"style": "scene", "character": "person"}[kind]
    )
    assert bool(job.job.trigger) == (kind != "motion")


@pytest.mark.parametrize(
    ("kind", "count", "steps"),
    [
        ("motion", 5, 1500),
        ("motion", 10, 1500),
        ("motion", 20, 2000),
        ("motion", 30, 2500),
        ("motion", 90, 2500),
        ("style", 25, 2000),
        ("character", 10, 2000),
        ("character", 40, 3000),
    ],
)
def test_steps_grow_with_the_clips(kind, count, steps):
    assert recommend(kind, MACHINES["80 GB"], clips(count), name="o", clips_path="c").job.training.steps == steps


@pytest.mark.parametrize(
    ("on", "of", "frames"),
    [
        ("12 GB", "hd", 21),
        ("24 GB", "hd", 41),
        ("48 GB", "hd", 41),
        ("80 GB", "hd", 81),
        ("141 GB", "long", 81),
        ("24 GB", "short", 41),
        ("24 GB", "very short", 5),
        ("24 GB", "images", 1),
        ("24 GB", "none", 41),
        ("12 GB", "none", 21),
        ("no GPU", "none", 41),
        ("80 GB", "short", 61),
    ],
)
def test_frames_follow_memory_and_clips(on, of, frames):
    job = made("motion", on, of).job
    assert job.datasets[0].num_frames == frames and job.datasets[0].sampling == "uniform"


def test_reasons_say_what_decided_the_frames():
    assert "shortest clip has 7 frames" in made("motion", "24 GB", "very short").reasons["datasets[0].num_frames"]
    assert "half the time of 81" in made("motion", "80 GB", "hd").reasons["datasets[0].num_frames"]
    assert "1.95x" in (why := made("motion", "24 GB", "hd").reasons["datasets[0].num_frames"]) and "81" not in why


def test_one_short_clip_does_not_shorten_the_others():
    found = made("motion", "80 GB", "short")
    assert found.job.datasets[0].short_clips == "shorten"
    assert found.reasons["datasets[0].short_clips"].startswith("1 of your 12 clips is much shorter than the others")
    assert {f.code for f in check_job(found.job, known("80 GB", "short"))} >= {"clips-shortened"}
    for of in ("hd", "just enough", "very short", "few", "none", "images"):
        assert made("motion", "80 GB", of).job.datasets[0].short_clips == "refuse"


def test_a_clip_that_shows_no_motion_decides_nothing():
    found = recommend(
        "motion",
        MACHINES["80 GB"],
        [*clips(11, frames=90, fps=24), clip("s.mp4", frames=2, fps=24)],
        name="o",
        clips_path="c",
    ).job.datasets[0]
    assert (found.num_frames, found.short_clips) == (61, "refuse")


def test_image_datasets_still_preview_as_video():
    job = made("style", "24 GB", "images").job
    assert (job.datasets[0].num_frames, job.sample.num_frames) == (1, 41)


def test_style_and_character_keep_true_speed_where_clips_are_long_enough():
    for kind in ("style", "character"):
        job = made(kind, "24 GB", "hd").job
        assert (job.datasets[0].sampling, job.datasets[0].num_frames) == ("realtime", 41)
        assert made(kind, "80 GB", "hd").job.datasets[0].sampling == "uniform"  # 81 frames of 5 s are true speed
        assert made(kind, "24 GB", "just enough").job.datasets[0].sampling == "uniform"


@pytest.mark.parametrize(
    ("on", "of", "resolutions"),
    [
        ("24 GB", "hd", [512]),
        ("48 GB", "hd", [512, 768]),
        ("80 GB", "just enough", [512]),
        ("80 GB", "tiny", [79]),
        ("80 GB", "none", [512, 768]),
        ("80 GB", "mixed sizes", [512, 768]),
    ],
)
def test_resolutions_follow_memory_and_clips(on, of, resolutions):
    assert made("motion", on, of).job.datasets[0].resolutions == resolutions


@pytest.mark.parametrize(
    ("on", "of", "size"),
    [
        ("24 GB", "hd", (672, 384)),
        ("80 GB", "hd", (1024, 576)),
        ("24 GB", "portrait", (384, 672)),
        ("80 GB", "tiny", (96, 64)),
        ("24 GB", "none", (768, 768)),
        ("12 GB", "none", (512, 512)),
    ],
)
def test_previews_have_the_shape_of_the_clips(on, of, size):
    job = made("motion", on, of).job
    assert (job.sample.width, job.sample.height) == size
    assert job.sample.width % 16 == job.sample.height % 16 == 0


def test_the_gpu_with_most_free_memory():
    two = machine(gpu(80, vram_free=5 * 2**30), gpu(24, index=1), gpu(141, index=2, error="lost"))
    found = recommend("motion", two, clips(), name="o", clips_path="c")
    assert found.job.job.gpus == [1] and "job.gpus" in found.reasons
    assert found.tier == tier_for(24).name
    assert recommend("motion", machine(gpu(24), gpu(24, index=1)), clips(), name="o", clips_path="c").job.job.gpus == [
        0
    ]


@pytest.mark.parametrize(
    ("captions", "trigger"),
    [
        (["frung, young woman", "frung, sitting"] * 5, "frung"),
        (["a man, walking", "the man, sitting"] * 5, made_up_word("orbit")),
        (["[trigger], young woman"] * 5, made_up_word("orbit")),
        ([""] * 5, made_up_word("orbit")),
    ],
)
def test_the_trigger_is_the_one_in_use_or_a_made_up_word(captions, trigger):
    found = recommend(
        "character",
        MACHINES["80 GB"],
        [clip(f"{i}.mp4", caption=c) for i, c in enumerate(captions)],
        name="orbit",
        clips_path="c",
    )
    assert found.job.job.trigger == trigger and found.reasons["job.trigger"]


def test_motion_takes_a_trigger_only_when_its_captions_use_one():
    assert recommend(
        "motion", MACHINES["80 GB"], clips(caption="[trigger] the subject"), name="o", clips_path="c"
    ).job.job.trigger == made_up_word("o")


def test_made_up_words_are_words_and_differ():
    words = {made_up_word(f"job{i}") for i in range(200)}
    assert len(words) > 190 and all(w.isalpha() and w.isascii() and 5 <= len(w) <= 8 for w in words)
    assert made_up_word("orbit") == made_up_word("orbit")


def test_default_captions():
    bare = [clip(f"{i}.mp4", caption="") for i in range(10)]

    def default(kind: Kind, found: list[ClipFacts]) -> str:
        return recommend(kind, MACHINES["80 GB"], found, name="o", clips_path="c").job.datasets[0].default_caption

    assert default("motion", clips()) == default("character", clips()) == ""
    assert default("motion", [*clips(3), *bare]) == "orbit 360 around the subject"
    assert default("character", bare) == "[trigger], person" and default("style", bare) == "[trigger] style"
    assert default("motion", bare) == "", "only the user knows the motion"


def test_a_tiny_model_on_a_machine_without_gpu_can_train_the_recommended_job():
    found = made("motion", "no GPU", "tiny")
    assert [
        f
        for f in check_job(found.job, facts(CLIPS["tiny"], machine=MACHINES["no GPU"], model=tiny_model()))
        if f.severity != "advice"
    ] == []


def test_a_bad_name_is_refused():
    with pytest.raises(ValueError, match=r"job\.name"):
        recommend("motion", MACHINES["80 GB"], [], name="a/b", clips_path="c")


@pytest.mark.parametrize("kind", KINDS)
def test_recipes_name_fields_and_values_that_exist(kind):
    recipe = load_recipe(kind)
    for values in [recipe.values, *(t.values for t in load_tiers())]:
        for path, advised in values.items():
            field = FIELDS[path.replace("[0]", "")]
            msgspec.convert(advised.value, field.annotation)
    assert recipe.clips.low < recipe.clips.high and recipe.steps.low < recipe.steps.high


def test_tiers_cover_every_card_and_hold_valid_counts():
    tiers = load_tiers()
    assert tiers[0].from_gib == 0 and [t.from_gib for t in tiers] == sorted(t.from_gib for t in tiers)
    assert [tier_for(g).name for g in (8, 12, 16, 24, 32, 47.5, 79.6, 140)] == [
        tiers[i].name for i in (0, 0, 0, 1, 1, 2, 3, 3)
    ]
    for tier in tiers:
        assert all(n % 4 == 1 for n in (tier.frames.low, tier.frames.high, tier.start_frames))


@pytest.mark.parametrize(
    ("kind", "count", "held"),
    [("motion", 0, 0), ("motion", 3, 0), ("motion", 33, 0), ("motion", 34, 4), ("style", 43, 0), ("character", 44, 4)]
    + [("style", n, 4) for n in (45, 99, 133, 1000, 4999, 30000)],
)
def test_clips_are_held_out_where_more_lie_there_than_the_kind_takes(kind: Kind, count: int, held: int):
    found = recommend(kind, MACHINES["24 GB"], clips(count), name="orbit", clips_path="clips")
    fraction = found.job.validation.fraction
    assert wanted(fraction, count) == held and (fraction > 0) == (held > 0)
    reason = found.reasons["validation.fraction"]
    if held:
        assert reason.startswith(f"4 of your {count} clips do not train") and len(f"{fraction:.12g}") <= 9
    else:
        assert f"from {34 if kind == 'motion' else 44} on, 4 are held out" in reason and "validation.path" in reason
