"""NVML sees a GPU and torch does not: a job whose base is no toy is refused before anything is loaded, with the command
that mends it.

The NVML is a stand-in, everything else real: the commands, the daemon, and a torch that has no GPU here.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pynvml
import pytest
import tomlkit
import torch
from safetensors.numpy import load_file

from engine.recovery.__main__ import build
from engine.run import run_job
from presets.errors import UserError
from presets.facts.facts import TINY_PARAMETERS
from presets.machine.torch_build import Build, installed_build, misfit
from presets.runs.events import read_events
from tests.helpers import ROOT
from tests.helpers.facts import gpu, machine
from tests.helpers.interface.harness import environment, wanlora
from tests.helpers.videos import write_clip

NVML = """
import importlib.util
import sys
from types import SimpleNamespace

spec = importlib.util.spec_from_file_location("real_pynvml", {real!r})
sys.modules["real_pynvml"] = real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)
globals().update({{name: value for name, value in vars(real).items() if not name.startswith("__")}})

def no_mig(card): raise NVMLError_NotSupported()

nvmlInit = nvmlShutdown = lambda: None
nvmlSystemGetDriverVersion = lambda: {driver!r}
nvmlSystemGetCudaDriverVersion_v2 = lambda: {cuda}
nvmlDeviceGetCount = lambda: 1
nvmlDeviceGetHandleByIndex = lambda index: index
nvmlDeviceGetName = lambda card: "NVIDIA GeForce RTX 4090"
nvmlDeviceGetUUID = lambda card: "GPU-4090"
nvmlDeviceGetCudaComputeCapability = lambda card: (8, 9)
nvmlDeviceGetMigMode = no_mig
nvmlDeviceGetMemoryInfo = lambda card: SimpleNamespace(total=24 * 2**30, free=23 * 2**30)
nvmlDeviceGetComputeRunningProcesses = nvmlDeviceGetGraphicsRunningProcesses = lambda card: []
"""


def with_driver(folder: Path, driver: str, cuda: int) -> dict[str, str]:
    """The environment of a machine with one RTX 4090 under this driver, which says that it serves this CUDA (12040:
    12.4)."""
    (folder / "nvml").mkdir()
    (folder / "nvml" / "pynvml.py").write_text(NVML.format(real=pynvml.__file__, driver=driver, cuda=cuda))
    return environment(PYTHONPATH=f"{folder / 'nvml'}{os.pathsep}{ROOT}")


def enlarge(base: Path) -> None:
    """Each expert gets a tensor of nothing, so large that the base is no toy any more; no two have the same."""
    for expert in ("transformer", "transformer_2"):
        nothing = TINY_PARAMETERS + len(expert)
        path = base / expert / "diffusion_pytorch_model.safetensors"
        header: dict[str, Any] = {}
        at = 0
        content = b""
        for name, tensor in load_file(path).items():
            header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
            content, at = content + tensor.tobytes(), at + tensor.nbytes
        header["nothing"] = {
            "dtype": "BF16",
            "shape": [nothing],
            "data_offsets": [at, at + 2 * nothing],
        }
        said = json.dumps(header).encode()
        with path.open("wb") as f:
            f.write(len(said).to_bytes(8, "little") + said + content)
            f.truncate(8 + len(said) + at + 2 * nothing)


@pytest.fixture
def work(prepared: Path, tiny: Path, tmp_path: Path) -> Path:
    """A folder with the demo's job, for a base that is no toy."""
    shutil.copytree(prepared, tmp_path / "work", ignore=shutil.ignore_patterns("base"))
    shutil.copytree(tiny, tmp_path / "work" / "base")
    enlarge(tmp_path / "work" / "base")
    settings = tomlkit.parse((tmp_path / "work" / "job.toml").read_text())
    settings["training"]["steps"] = 1  # type: ignore[index]
    (tmp_path / "work" / "job.toml").write_text(tomlkit.dumps(settings))
    return tmp_path / "work"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU")
def test_a_torch_that_does_not_fit_the_driver(work: Path, tmp_path: Path, home: Path):
    driver, cuda = ("550.54.14", 12040) if misfit(installed_build(), "550.54.14") else ("470.82.01", 11040)
    wrong = misfit(installed_build(), driver)
    env = with_driver(tmp_path, driver, cuda) | {
        name: value for name, value in os.environ.items() if name.startswith(("HOME", "XDG_"))
    }
    said = wanlora("check", work / "job.toml", "--json", cwd=work, env=env)
    errors = [f for f in json.loads(said.stdout) if f["severity"] == "error"]
    assert said.returncode == 1 and [f["code"] for f in errors] == ["torch-misfit"]
    assert wrong.message in errors[0]["message"] and errors[0]["fix"] == wrong.fix

    said = wanlora("doctor", cwd=work, env=env)
    assert said.returncode == 1 and wrong.message in said.stdout and f"-> {wrong.fix}" in said.stdout

    said = wanlora("train", "job.toml", cwd=work, env=env)
    run = next((work / "runs").iterdir())
    assert said.returncode == 1 and wrong.message in said.stderr and "Traceback" not in said.stderr
    told = [event for event, _ in read_events(run / "events.jsonl")]
    assert told[-1].kind == "failed" and wrong.message in told[-1].data["cause"] and wrong.fix in told[-1].data["next"]
    assert {e.data["text"] for e in told if e.kind == "phase"} == {"checking the job"}, "something was loaded"
    assert sorted(p.name for p in run.iterdir()) == [".lock", "events.jsonl"]

    said = wanlora("submit", "job.toml", cwd=work, env=env)
    assert said.returncode == 1 and wrong.message in " ".join(said.stderr.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU")
def test_a_torch_that_sees_no_gpu_though_the_rules_saw_nothing_wrong(work: Path, monkeypatch: pytest.MonkeyPatch):
    """The trainer asks torch before it loads."""
    monkeypatch.setattr("engine.run.check_job", lambda job, facts: [])
    monkeypatch.setattr("presets.facts.gather.read_machine", lambda out: machine(gpu(), torch=Build("2.13.0", "13.0")))
    assert run_job(work / "job.toml", None, resume=False, workers=0) == 1
    [run] = (work / "runs").iterdir()
    told = [event for event, _ in read_events(run / "events.jsonl")]
    assert (
        told[-1].kind == "failed"
        and "torch does not see the GPU" in told[-1].data["cause"]
        and "wanlora doctor" in told[-1].data["next"]
    )
    assert {e.data["text"] for e in told if e.kind == "phase"} == {"checking the job"}, "something was loaded"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU")
def test_the_builder_of_adapters_refuses_alike(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "presets.machine.machine.read_machine", lambda out: machine(gpu(driver="550.1"), torch=Build("2.13.0", "13.0"))
    )
    with pytest.raises(UserError, match=r"NVIDIA driver 550\.1 does not serve"):
        build(
            str(work / "base"),
            rank=2,
            grid="qint4",
            clips=None,
            full=False,
            out=tmp_path / "a.safetensors",
            expert="both",
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU")
def test_a_toy_trains_on_the_cpu_all_the_same(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "presets.facts.gather.read_machine", lambda out: machine(gpu(driver="550.1"), torch=Build("2.13.0", "13.0"))
    )
    shutil.copytree(tiny, tmp_path / "base")
    (tmp_path / "clips").mkdir()
    for name in ("a", "b"):
        write_clip(tmp_path / "clips" / f"{name}.mp4", frames=9, fps=16.0)
        (tmp_path / "clips" / f"{name}.txt").write_text("orbit")
    (tmp_path / "job.toml").write_text(
        '[job]\nname = "toy"\n[model]\npath = "base"\n[quantization]\ntransformer = "none"\ntext_encoder ='
        ' "none"\n[target]\nrank = 2\n[training]\nsteps = 1\noptimizer = "adamw"\n[[datasets]]\npath ='
        ' "clips"\nnum_frames = 5\nresolutions = [64]\n'
    )
    assert run_job(tmp_path / "job.toml", None, resume=False, workers=0) == 0
