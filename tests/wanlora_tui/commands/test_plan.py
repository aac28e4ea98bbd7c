"""The real `wanlora plan`: what it prints for people and for programs, and what it says when nothing fits."""

import json
import shlex
from pathlib import Path

import pytest

from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel, PromptPanel, SamplePanel
from presets.job.toml_file import load_job, save_job, with_value
from presets.machine.torchrun import stop_options
from presets.planner.several_gpus import LEAST_GRACE, stop_grace
from presets.planner.sizes import GIB, ExpertShape
from tests.helpers.facts import gpu, machine
from tests.helpers.interface.harness import wanlora
from tests.helpers.videos import write_clip, write_image
from wanlora_tui.cli import main
from wanlora_tui.commands.plan import hardware_for


def write_job(folder: Path, **sample: int) -> Path:
    job = Job(
        job=JobPanel(name="orbit_v1"),
        model=ModelPanel(path="nobody/has-this-model"),
        datasets=[DatasetPanel(path="clips", resolutions=[512, 768])],
        sample=SamplePanel(
            **{"width": 512, "height": 512, **sample}, prompts=[PromptPanel(prompt="orbit", ctrl_img="a.png")]
        ),  # type: ignore[arg-type]
    )
    save_job(job, folder / "job.toml")
    return folder / "job.toml"


def test_a_plan_for_people(tmp_path: Path):
    said = wanlora("plan", write_job(tmp_path), "--gpu", "4090", "--ram", "96")
    assert (said.returncode, said.stderr) == (0, "")
    heads = [line.split()[0] for line in said.stdout.splitlines() if not line.startswith(" ")]
    assert heads == ["GPU", "Work", "Plan", "VRAM", "RAM", "Step", "Previews", "Total", "Up", "Down"]
    for words in (
        "RTX 4090, 23.6 GiB of 24.0 GiB free",
        "41x768x768 at the largest",
        "as if clips filled",
        "float8",
        "96.0 GiB",
        "copies hidden",
        "for 2000 steps",
        "GiB of VRAM: float8",
    ):
        assert words in said.stdout, words


def test_masked_clips_are_counted(tmp_path: Path):
    file = write_job(tmp_path)
    (tmp_path / "clips").mkdir(exist_ok=True)
    for i in range(3):
        write_clip(tmp_path / "clips" / f"{i}.mp4", frames=41)
    write_image(tmp_path / "clips" / "1.mask.png")
    said = wanlora("plan", file, "--gpu", "4090", "--ram", "96")
    assert "Masks      1 of 3 clips has a loss mask" in said.stdout
    assert json.loads(wanlora("plan", file, "--gpu", "4090", "--ram", "96", "--json").stdout)["masked_clips"] == 1


def test_what_the_fixed_order_costs_is_told(tmp_path: Path):
    file = write_job(tmp_path)
    fixed = wanlora("plan", file, "--gpu", "H200", "--ram", "96")
    (line,) = [line.strip() for line in fixed.stdout.splitlines() if "training.deterministic = false" in line]
    job = load_job(file)
    job.training.deterministic = False
    save_job(job, file)
    free = wanlora("plan", file, "--gpu", "H200", "--ram", "96")
    assert "deterministic" not in free.stdout
    seconds = next(line for line in free.stdout.splitlines() if line.startswith("Step")).split()[1]
    assert f"= false {seconds} s (-" in line


def test_a_plan_for_programs(tmp_path: Path):
    file = write_job(tmp_path)
    save_job(with_value(load_job(file), "datasets[0].resolutions", [512]), file)
    said = wanlora("plan", file, "--gpu", "4090", "--ram", "96", "--json")
    found = json.loads(said.stdout)
    assert said.returncode == 0 and found["fits"] is True and found["plan"]["precision"] == "float8"
    need, seconds = found["prediction"]["need_vram"], found["prediction"]["seconds"]
    assert 8 * GIB < need < found["hardware"]["vram_free"] < 24 * GIB
    assert found["seconds_per_step"] == pytest.approx(
        sum(seconds[part] for part in ("transformer", "copies", "vae", "other"))
    )
    assert found["seconds_in_any_order"] < found["seconds_per_step"]
    assert found["ladder"] and found["down"]["need_vram"] < need < found["up"]["need_vram"]
    assert found["prediction"]["ram_held"].keys() == {"masters", "stash", "accelerator", "process"}


def test_whether_short_clips_run_as_graphs_is_told(tmp_path: Path, capsys):
    file = write_job(tmp_path)
    short = load_job(file)
    short.datasets[0].num_frames, short.datasets[0].resolutions, short.sample.prompts = 21, [256], []
    save_job(short, file)

    def told(card: str = "H100 SXM") -> str:
        assert main(["plan", str(file), "--gpu", card, "--ram", "96"]) == 0
        return "".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("Graphs"))

    assert "blocks of up to 1536 tokens are CUDA graphs; without (model.cuda_graphs = false)" in told()
    assert "(+" in told() and told("3090") == ""
    save_job(with_value(short, "model.cuda_graphs", False), file)
    assert "not taken; were blocks of up to 1536 tokens CUDA graphs (model.cuda_graphs = true)" in told()
    assert told().endswith("of VRAM") and "(-" in told()


def test_a_precision_that_the_card_does_not_run_is_refused(tmp_path: Path):
    file = write_job(tmp_path)
    job = load_job(file)
    job.quantization.transformer = "float8"
    save_job(job, file)
    said = wanlora("plan", file, "--gpu", "3090", "--ram", "128")
    assert (
        (said.returncode, said.stdout) == (1, "")
        and "quantization.transformer: float8 needs compute capability 8.9" in said.stderr
        and 'Set quantization.transformer = "auto"' in said.stderr
    )
    told = wanlora("plan", file, "--gpu", "A100 80GB", "--ram", "128", "--json")
    assert told.returncode == 1 and json.loads(told.stdout)["fits"] is False and "RTX 3090" not in told.stdout
    assert wanlora("plan", file, "--vram", "24", "--ram", "128").returncode == 0, (
        "an amount of memory is taken for a card that can"
    )


def test_clips_that_are_there_count_as_they_are(tmp_path: Path):
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips/a.mp4", frames=48)
    said = wanlora("plan", write_job(tmp_path), "--vram", "24", "--ram", "96")
    assert said.returncode == 0 and "as if clips filled" not in said.stdout and "768x768" not in said.stdout
    assert "reckoned at the speed of RTX 3090" in said.stdout, "no card is named and none is here"


def test_what_does_not_fit_is_told_with_what_would_help(tmp_path: Path):
    job = write_job(tmp_path, width=1280, height=1280)
    said = wanlora("plan", job, "--gpu", "4070", "--ram", "96")
    assert said.returncode == 1 and said.stdout == "" and "Traceback" not in said.stderr
    assert "RTX 4070 has 11.6 GiB" in said.stderr and "while a preview is made" in said.stderr
    (knob,) = [
        line for line in said.stderr.splitlines() if line.startswith("  sample.width = 512, sample.height = 512: ")
    ]
    assert knob.endswith(", fits")
    asked = wanlora("plan", job, "--gpu", "4070", "--ram", "96", "--json")
    found = json.loads(asked.stdout)
    assert asked.returncode == 1 and found["fits"] is False and found["short"] == "vram"
    assert found["knobs"][0]["set"] == {"sample.width": 512, "sample.height": 512} and found["knobs"][0]["fits"] is True
    assert found["prediction"]["need_vram"] > found["hardware"]["vram_free"]
    assert found["prediction"]["ram_held"].keys() == {"masters", "stash", "accelerator", "process"}


@pytest.mark.parametrize("line", ["--vram 0", "--vram x", "--ram -3", "--vram nan", "--gpu"])
def test_usage(tmp_path: Path, line: str):
    said = wanlora("plan", write_job(tmp_path), *line.split())
    assert said.returncode == 2 and "usage:" in said.stderr


def test_an_unknown_card_is_told_with_those_that_are_like_it(tmp_path: Path):
    said = wanlora("plan", write_job(tmp_path), "--gpu", "4091", "--ram", "64")
    assert said.returncode == 1 and "4091" in said.stderr and "RTX 4090" in said.stderr and said.stderr.count("\n") == 1


def test_a_missing_job_is_one_line(tmp_path: Path):
    said = wanlora("plan", tmp_path / "no.toml")
    assert said.returncode == 1 and "no such job file" in said.stderr and said.stderr.count("\n") == 1


def test_the_machine_s_own_gpu_is_the_default(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    job = load_job(write_job(tmp_path))
    here = machine(gpu(24, name="NVIDIA GeForce RTX 4090", capability=(8, 9), vram_free=20 * GIB), ram_gib=64)
    found = hardware_for(job, here, card=None, vram=None, ram=None)
    assert (found.name, found.vram_free, found.ram_free) == ("NVIDIA GeForce RTX 4090", 20 * GIB, 64 * GIB)
    smaller = hardware_for(job, here, card=None, vram=12, ram=32)
    assert (
        smaller.vram_total == 12 * GIB
        and 11 * GIB < smaller.vram_free < 12 * GIB
        and smaller.ram_free == 32 * GIB
        and smaller.bf16_tflops == found.bf16_tflops
    )
    other = hardware_for(job, here, card="h200", vram=None, ram=None)
    assert other.name == "H200" and other.ram_total == 64 * GIB


def test_a_gpu_that_cannot_be_used_is_told():
    from presets.errors import UserError

    job = Job(job=JobPanel(name="x"), datasets=[DatasetPanel(path="clips")])
    for here, words in (
        (machine(problem="no driver"), "no driver"),
        (machine(gpu(24, index=3)), "no GPU 0"),
        (machine(gpu(24, error="fell off the bus")), "fell off the bus"),
    ):
        with pytest.raises(UserError, match=words):
            hardware_for(job, here, card=None, vram=None, ram=None)


def test_several_gpus_are_planned_with_what_each_has_and_the_command_that_trains_on_them(tmp_path: Path):
    file = write_job(tmp_path)
    said = wanlora("plan", file, "--gpu", "4090", "--ram", "192", "--gpus", "2")
    assert (said.returncode, said.stderr) == (0, "")
    for words in (
        "2: high noise and low noise train apart, a GPU each",
        "the first: ",
        "each other: ",
        "times as fast",
    ):
        assert words in said.stdout, words
    told = json.loads(wanlora("plan", file, "--gpu", "4090", "--ram", "192", "--gpus", "2", "--json").stdout)
    assert [share["expert"] for share in told["gpus"]["shares"]] == ["high_noise", "low_noise"]
    assert told["gpus"]["total"] < 0.6 * told["prediction"]["total"]


def test_more_gpus_than_were_measured_together_are_planned_and_it_is_said(tmp_path: Path, capsys):
    assert main(["plan", str(write_job(tmp_path)), "--gpu", "4090", "--ram", "192", "--gpus", "2"]) == 0
    assert "not measured on cards yet" not in capsys.readouterr().out
    job = with_value(load_job(tmp_path / "job.toml"), "training.gradient_accumulation", 4)
    save_job(job, tmp_path / "job.toml")
    assert main(["plan", str(tmp_path / "job.toml"), "--gpu", "4090", "--ram", "192", "--gpus", "8"]) == 0
    said = capsys.readouterr().out
    assert (
        "not measured on cards yet" in said
        and "benchmarks.gpus_apart JOB.toml --gpus 0,1,2,3,4,5,6,7 --steps 20" in said
    )


def test_the_torchrun_line_is_all_that_is_printed(tmp_path: Path, capsys):
    file = write_job(tmp_path)
    (tmp_path / "a b").mkdir()
    file = file.rename(tmp_path / "a b" / "job.toml")
    card = ["--gpu", "4090", "--ram", "192", "--torchrun"]
    assert main(["plan", str(file), "--gpus", "2", *card]) == 0
    said = capsys.readouterr()
    stops = shlex.join(stop_options(LEAST_GRACE))
    assert said.out == f"torchrun --standalone --nproc-per-node=2 {stops} -m engine '{file}'\n"
    assert said.err == "It trains only a job that names 2: job.gpus = [0, 1]\n"
    assert main(["plan", str(file), "--gpus", "1", "--nodes", "2", *card]) == 0
    said = capsys.readouterr()
    assert (
        "torchrun --nnodes=2 --node-rank=0 --master-addr=FIRST_NODE --master-port=29400 --nproc-per-node=1" in said.out
    )
    assert (
        "an address by which all nodes reach the first one. That has --node-rank=0, the others --node-rank=1."
        in said.err
    )
    job = with_value(with_value(load_job(file), "target.rank", 256), "training.optimizer", "adamw")
    save_job(job, file, fresh=True)
    assert main(["plan", str(file), "--gpus", "2", "--torchrun", "--gpu", "4090", "--ram", "1"]) == 0  # fits nowhere
    said = capsys.readouterr()
    grace = stop_grace(job, ExpertShape(), 2, None)
    assert grace > 2 * LEAST_GRACE and shlex.join(stop_options(grace)) in said.out
    assert f"it has {grace} s to save. That is for slow steps, for there is no plan:" in said.err
    save_job(with_value(job, "target.rank", 16), file, fresh=True)
    assert main(["plan", str(file), "--gpus", "3", *card]) == 1
    assert "Use 1 or 2 of them" in capsys.readouterr().err
