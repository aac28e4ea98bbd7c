"""The real `wanlora timesteps`: the chart in the terminal, as PNG and as JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from presets.job.schema import DatasetPanel, ExpertPanel, Job, JobPanel, ModelPanel, MultistagePanel, TrainingPanel
from presets.job.timesteps import timesteps_of
from presets.job.toml_file import save_job
from tests.helpers.interface.harness import environment, wanlora
from wanlora_tui.cli import main
from wanlora_tui.output.timestep_chart import COLUMNS, is_cut, scale_of, text_chart


def make_job(
    *,
    boundary: float | str = 0.9,
    high: bool = True,
    share: float = 1.0,
    model: str = "nobody/has-this-model",
    **training: object,
) -> Job:
    return Job(
        job=JobPanel(name="orbit_v1"),
        model=ModelPanel(path=model, boundary=boundary),
        datasets=[DatasetPanel(path="clips")],  # type: ignore[arg-type]
        multistage=MultistagePanel(high_noise=high, high=ExpertPanel(share=share)),
        training=TrainingPanel(**{"steps": 1000, **training}),  # type: ignore[arg-type]
    )


def write_job(folder: Path, **fields: object) -> Path:
    save_job(make_job(**fields), folder / "job.toml")  # type: ignore[arg-type]
    return folder / "job.toml"


def chart(job: Job, boundary: float = 0.9, *, blocks: bool = True) -> list[str]:
    return text_chart("title", timesteps_of(job, boundary, bins=COLUMNS), job.training.steps, boundary, blocks=blocks)


def heights(lines: list[str]) -> list[int]:
    """How many rows of each column of a panel are filled."""
    rows = [line[8:].ljust(COLUMNS) for line in lines if line[7:8] == "│"]
    return [sum(row[i] not in " │" for row in rows) for i in range(COLUMNS)]


def test_the_chart_for_people(tmp_path: Path):
    said = wanlora("timesteps", write_job(tmp_path, share=3.0), "--png", tmp_path / "chart.png")
    assert (said.returncode, said.stderr) == (0, f"Wrote {tmp_path / 'chart.png'}.\n")
    assert max(len(line) for line in said.stdout.splitlines()) <= 80
    for words in (
        "orbit_v1: timestep type linear, bias balanced, boundary 900 (from the job)",
        "high noise: 750 of 1000 steps (75%), timesteps 900 to 1000, median 950",
        "low noise: 250 of 1000 steps (25%), timesteps 0 to 900, median 450",
        "boundary 900",
        "█",
    ):
        assert words in said.stdout, words
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.format == "PNG" and picture.width >= 1000
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    orange, blue = ((np.abs(pixels - colour).sum(axis=2) < 30).sum() for colour in ((240, 213, 199), (200, 216, 232)))
    assert blue > 5 * orange > 5000, "both panels are filled, the high-noise one over its own tenth of the axis"


def test_the_chart_in_a_terminal_without_unicode(tmp_path: Path):
    said = wanlora(
        "timesteps", write_job(tmp_path, timestep_bias="high_noise"), env=environment(PYTHONIOENCODING="ascii")
    )
    assert said.returncode == 0 and said.stdout.isascii() and "####" in said.stdout and "^ off the scale" in said.stdout


def test_the_chart_for_programs(tmp_path: Path):
    said = wanlora(
        "timesteps", write_job(tmp_path, boundary="model", timestep_type="shift", timestep_bias="low_noise"), "--json"
    )
    found = json.loads(said.stdout)
    assert (
        said.returncode == 0
        and (found["boundary"], found["bin"], found["timestep_bias"]) == (0.9, 10, "low_noise")
        and "not on this machine" in found["boundary_source"]
    )
    high, low = found["experts"]
    assert (high["expert"], high["steps"], high["low"], high["high"]) == ("high_noise", 500, 900, 1000) and (
        low["low"],
        low["high"],
    ) == (0, 900)
    for expert in (high, low):
        assert len(expert["masses"]) == 100 and sum(expert["masses"]) == pytest.approx(1)
        assert all(m == 0 for i, m in enumerate(expert["masses"]) if not expert["low"] <= 10 * i < expert["high"])
    q = (0.5**3) * (0.9 / (5 - 4 * 0.9))  # the median's quantile, u^3 at u = 1/2, of shift's F(0.9)
    assert low["median"] == pytest.approx(1000 * 5 * q / (1 + 4 * q))


def test_the_model_s_boundary_is_read_and_a_model_without_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from tests.helpers.interface.wizard_pilot import make_base

    base = make_base(tmp_path / "base")
    job = str(write_job(tmp_path, boundary="model", model="base"))
    assert main(["timesteps", job]) == 0 and "boundary 900 (from the model)" in capsys.readouterr().out
    (base / "model_index.json").write_text('{"boundary_ratio": 7}')
    assert main(["timesteps", job]) == 1
    assert "Set model.boundary = 0.9" in capsys.readouterr().err
    assert main(["timesteps", str(write_job(tmp_path, boundary=875.0))]) == 1
    assert "875 is no noise level" in capsys.readouterr().err
    assert main(["timesteps", str(write_job(tmp_path)), "--png", str(tmp_path / "no" / "folder.png")]) == 1
    assert "folder.png: cannot be written" in capsys.readouterr().err


def test_an_expert_that_is_off_has_no_panel():
    lines = chart(make_job(high=False))
    assert "high noise: not trained" in lines and any("low noise: 1000 of 1000 steps (100%)" in line for line in lines)
    assert sum("boundary" in line for line in lines) == 1


@pytest.mark.parametrize("kind", ["linear", "sigmoid", "shift"])
@pytest.mark.parametrize("bias", ["balanced", "high_noise", "low_noise"])
@pytest.mark.parametrize("boundary", [0.9, 0.5, 0.02, 0.999])
def test_every_chart_fits_and_fills_its_range(kind: str, bias: str, boundary: float):
    job = make_job(timestep_type=kind, timestep_bias=bias)
    lines = chart(job, boundary)
    assert max(map(len, lines)) <= 80
    for expert in timesteps_of(job, boundary, bins=COLUMNS):
        start = next(i for i, line in enumerate(lines) if line.startswith(expert.expert.replace("_", " ")))
        panel = lines[start + 1 : start + 11]
        inside = {
            i for i in range(COLUMNS) if (i + 1) / COLUMNS > expert.low / 1000 and i / COLUMNS < expert.high / 1000
        }
        assert {i for i, h in enumerate(heights(panel)) if h} == inside
        assert ("▲ off the scale" in panel[-1]) == is_cut(expert) == any("▲" in line for line in panel[:-1])
        assert "boundary" in panel[-1] and scale_of(expert) > 0


def test_a_higher_density_stands_higher():
    rising = [h for h in heights(chart(make_job(timestep_type="shift"))[14:]) if h]
    assert rising == sorted(rising) and rising[-1] > rising[0]
