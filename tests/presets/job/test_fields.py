"""Field descriptions: complete, and found by path."""

import pytest

from presets.errors import UserError
from presets.job.fields import FIELDS, field_of, join_path, nearest, parse_path
from presets.job.toml_file import parse_job

# Every control of the guide's panels.
GUIDE = [
    "job.name",
    "job.gpus",
    "job.trigger",
    "model.path",
    "model.low_vram",
    "model.layer_offloading",
    "quantization.transformer",
    "quantization.text_encoder",
    "multistage.high_noise",
    "multistage.low_noise",
    "multistage.switch_every",
    "target.type",
    "target.rank",
    "save.dtype",
    "save.every",
    "save.keep",
    "training.batch_size",
    "training.gradient_accumulation",
    "training.lr",
    "training.steps",
    "training.weight_decay",
    "training.loss",
    "training.timestep_type",
    "training.timestep_bias",
    "training.ema",
    "training.unload_text_encoder",
    "training.cache_text_embeddings",
    "training.dop",
    "training.dop_multiplier",
    "training.dop_class",
    "advanced.differential_guidance",
    "advanced.differential_guidance_scale",
    "datasets.path",
    "datasets.default_caption",
    "datasets.caption_dropout",
    "datasets.weight",
    "datasets.cache_latents",
    "datasets.regularization",
    "datasets.flip_x",
    "datasets.flip_y",
    "datasets.resolutions",
    "datasets.num_frames",
    "sample.every",
    "sample.sampler",
    "sample.width",
    "sample.height",
    "sample.guidance",
    "sample.steps",
    "sample.seed",
    "sample.walk_seed",
    "sample.num_frames",
    "sample.fps",
    "sample.prompts.prompt",
    "sample.prompts.ctrl_img",
]


def test_every_control_of_the_guide_is_a_field():
    assert not set(GUIDE) - set(FIELDS)


@pytest.mark.parametrize("field", FIELDS.values(), ids=lambda f: f.path)
def test_each_field_describes_itself(field):
    assert field.label and field.help.endswith(".") and field.type_text
    assert field.path == f"{field.panel}.{field.name}"
    assert field.default is None or not field.choices or field.default in field.choices
    if field.minimum is not None and isinstance(field.default, int | float):
        assert field.minimum <= field.default


def test_labels_are_unique_within_a_panel():
    seen = [(f.panel, f.label) for f in FIELDS.values()]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("path", "limits"),
    [
        ("target.rank", "1 to 1024"),
        ("training.lr", "above 0, at most 10"),
        ("save.every", "at least 1"),
        ("training.ema_decay", "above 0, below 1"),
        ("datasets.resolutions", "64 to 4096"),
        ("job.gpus", ""),
        ("training.dop", ""),
        ("target.alpha", "above 0"),
    ],
)
def test_limits_in_words(path, limits):
    assert FIELDS[path].limits_text == limits


def test_limits_agree_with_what_a_job_takes():
    text = '[job]\nname = "o"\n[[datasets]]\npath = "c"\n[training]\nlr = {}\n'
    parse_job(text.format(10))
    with pytest.raises(ValueError):
        parse_job(text.format(10.1))


@pytest.mark.parametrize("path", ["training.lr", "datasets[0].num_frames", "sample.prompts[12].ctrl_img", "job"])
def test_paths_parse_and_join(path):
    assert join_path(parse_path(path)) == path


@pytest.mark.parametrize("path", ["", ".", "a..b", "a[", "a[x]", "a[-1]", "1a", "a b", "[0].x", "a]"])
def test_what_is_no_path(path):
    with pytest.raises(UserError, match="not a field path"):
        parse_path(path)


def test_fields_are_found_with_and_without_index():
    assert field_of("datasets[3].num_frames") is field_of("datasets.num_frames") is FIELDS["datasets.num_frames"]
    with pytest.raises(UserError, match=r"Did you mean training\.lr"):
        field_of("trainig.lr")
    with pytest.raises(UserError, match=r"docs/job-file\.md"):
        field_of("zzz")


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("xyz", ["training", "sample"]) is None
    assert nearest("sampel", ["training", "sample"]) == "sample"
