"""The demo: its run names, and once the whole of it on the real trainer."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from safetensors import safe_open

from presets.errors import UserError
from presets.job.toml_file import load_job
from tests.helpers.interface.harness import end_daemon, short_dir, wanlora, write_job
from wanlora_tui.commands.demo import free_job, prepare


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = short_dir()
    try:
        yield folder
    finally:
        end_daemon(folder)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_name_in_use_gets_a_number_and_the_job_stays_the_same(tmp_path: Path):
    job = write_job(tmp_path, "demo")
    assert free_job(job, set()) == job
    (tmp_path / "runs/demo").mkdir(parents=True)
    second = free_job(job, set())
    assert load_job(second).job.name == "demo-2" and second.parent == job.parent
    (tmp_path / "runs/demo-2").mkdir()
    third = free_job(job, {"demo-3"})
    assert load_job(third).job.name == "demo-4" and load_job(third).training == load_job(job).training


@pytest.mark.process
def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the demo could not be prepared") as caught:
        prepare(tmp_path / "file" / "demo")
    assert (
        "Traceback" not in str(caught.value)
        and str(caught.value).count("Choose another folder") == 1
        and "--out" not in str(caught.value)
    )


def test_the_whole_demo_ends_with_two_loras_and_a_preview(folder: Path, tmp_path: Path):
    said = wanlora("demo", "--plain", "--steps", "2", "--out", tmp_path / "demo", "--dir", folder)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    events, files = [line for line in lines if re.match(r"\d\d:\d\d:\d\d ", line)], [Path(line) for line in lines[-3:]]
    assert [line.split()[1] for line in events].count("step") == 2 and events[-1].split()[1] == "done"
    assert [f.name for f in files[:2]] == ["demo_orbit_high_noise.safetensors", "demo_orbit_low_noise.safetensors"]
    for file in files[:2]:
        with safe_open(file, "np") as opened:
            names = opened.keys()
        assert names and all(name.startswith("diffusion_model.blocks.") for name in names)
    with av.open(files[2]) as video:
        assert video.streams.video[0].codec.name == "h264"
