"""The typed job: defaults, and that every field says what it is."""

import msgspec
import pytest

from presets.job.schema import DatasetPanel, Job, JobPanel, suggested_name
from presets.job.toml_file import parse_job

LEAST = '[job]\nname = "orbit"\n[[datasets]]\npath = "clips"\n'


def test_the_least_job_has_the_guide_s_defaults():
    job = parse_job(LEAST)
    assert job == Job(job=JobPanel(name="orbit"), datasets=[DatasetPanel(path="clips")])
    assert (job.target.rank, job.training.lr, job.training.weight_decay, job.multistage.switch_every) == (
        16,
        1e-4,
        1e-4,
        10,
    )
    assert (job.save.every, job.save.keep, job.sample.every, job.sample.seed, job.sample.fps) == (
        250,
        4,
        250,
        42,
        16,
    )
    assert job.multistage.high_noise and job.multistage.low_noise
    assert not (
        job.training.dop
        or job.training.ema
        or job.datasets[0].cache_latents
        or job.datasets[0].flip_x
        or job.datasets[0].flip_y
    )


def test_defaults_are_not_shared_between_jobs():
    one, two = parse_job(LEAST), parse_job(LEAST)
    one.job.gpus.append(1)
    one.datasets[0].resolutions.append(768)
    assert (two.job.gpus, two.datasets[0].resolutions, two.sample.prompts) == ([0], [512], [])


@pytest.mark.parametrize("name", ["a", "wan_i2v_orbit_v1", "A-1.b", "x" * 64])
def test_names_that_can_be_folders(name):
    assert msgspec.convert({"name": name}, JobPanel).name == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "x" * 65, "ñ", "a\n"])
def test_names_that_cannot(name):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": name}, JobPanel)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("orbit", "wan_i2v_style_orbit"),
        ("Orbit 360", "wan_i2v_style_Orbit_360"),
        ("\xf3rbita \u7403!", "wan_i2v_style_rbita"),
        ("...", "wan_i2v_style"),
        ("", "wan_i2v_style"),
        ("x" * 90, "wan_i2v_style_" + "x" * 50),
    ],
)
def test_a_folder_of_any_name_gives_a_name(folder, name):
    assert suggested_name("style", folder) == name == msgspec.convert({"name": name}, JobPanel).name
