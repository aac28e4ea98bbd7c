"""What doctor says of machines that CI has not."""

import importlib.metadata
import tomllib
from importlib.metadata import PackageNotFoundError
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from presets.machine.machine import read_machine
from presets.machine.torch_build import Build
from tests.helpers import ROOT
from tests.helpers.facts import gpu, machine
from wanlora_tui.commands import doctor, doctor_machine


def absent(name: str) -> NoReturn:
    raise PackageNotFoundError(name)


@pytest.mark.parametrize(("capability", "told"), [((9, 0), True), ((10, 0), True), ((8, 9), False), ((12, 0), False)])
def test_a_card_that_flash_attn_4_was_written_for_is_offered_it(monkeypatch, capability, told):
    monkeypatch.setattr(doctor_machine, "version", absent)
    lines = list(doctor_machine.attention(machine(gpu(capability=capability))))
    assert len(lines) == told
    for line in lines:
        assert line.level == "ok", "a wish, not a fault"
        assert "pip install" in line.fix and "'flash-attn-4>=" in line.fix and "'nvidia-cutlass-dsl[cu13]>=" in line.fix


def test_its_versions_are_those_of_the_extra():
    assert (
        list(doctor_machine.FLASH4)
        == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["flash4"]
    )


def test_it_is_of_cuda_13(monkeypatch):
    monkeypatch.setattr(doctor_machine, "version", absent)
    (line,) = doctor_machine.attention(machine(gpu(driver="570.1")))
    assert line.level == "ok" and "a driver that serves CUDA 13" in line.text and not line.fix


def test_what_is_installed_is_named(monkeypatch):
    monkeypatch.setattr(doctor_machine, "version", {"flash-attn-4": "4.0.0"}.__getitem__)
    (line,) = doctor_machine.attention(machine(gpu()))
    assert "flash-attn-4 4.0.0" in line.text and not line.fix


@pytest.mark.process
def test_the_package_s_own_metadata_is_not_asked_for(monkeypatch):
    """A clone that is on the path, and never was installed."""
    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    monkeypatch.setattr(doctor_machine, "version", absent)
    (line,) = doctor_machine.attention(machine(gpu()))
    assert "pip install" in line.fix
    assert doctor_machine.torch(read_machine(Path("/"))).level == "ok", "torch is here, whether or not its metadata are"


def answers(monkeypatch: pytest.MonkeyPatch, *said: object) -> None:
    """torch, asked in its own process, says this."""
    monkeypatch.setattr(
        doctor_machine.subprocess,
        "run",
        lambda *args, **more: SimpleNamespace(returncode=0, stdout="|".join(map(str, said)) + "\n", stderr=""),
    )


@pytest.mark.parametrize(
    ("build", "driver", "available", "words", "level", "text", "fix"),
    [
        (Build("2.13.0", "13.0"), "580.1", True, "", "ok", "2.13.0, CUDA 13.0", ""),
        (
            Build("2.13.0", "13.0"),
            "550.54.14",
            False,
            "The NVIDIA driver on your system is too old",
            "fail",
            "built for CUDA 13.0, which NVIDIA driver 550.54.14 does not serve",
            "'torch>=2.10,<2.11'",
        ),
        (Build("2.10.0", "12.8"), "470.82", False, "", "fail", "it wants 525.60 or newer", "Update the NVIDIA driver"),
        (
            Build("2.13.0+cpu"),
            "580.1",
            False,
            "Torch not compiled with CUDA enabled",
            "fail",
            "a build without CUDA",
            "'torch>=2.10,<2.14'",
        ),
        (
            Build("2.13.0", "13.0"),
            "580.1",
            False,
            "No CUDA GPUs are available",
            "fail",
            "No CUDA GPUs are available",
            "CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_what_torch_makes_of_the_gpu(monkeypatch, build, driver, available, words, level, text, fix):
    monkeypatch.setattr("presets.machine.torch_build.platform.machine", lambda: "x86_64")
    answers(monkeypatch, build.cuda, available, words)
    line = doctor_machine.torch(machine(gpu(driver=driver), torch=build))
    assert line.level == level and text in line.text and fix in line.fix


def test_no_torch_at_all(monkeypatch):
    monkeypatch.setattr("presets.machine.torch_build.platform.machine", lambda: "x86_64")
    line = doctor_machine.torch(machine(gpu(driver="550.1")))
    assert line.level == "fail" and line.text == "not installed" and "'torch>=2.10,<2.11'" in line.fix


def test_it_is_told_after_the_cards(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "read_machine", lambda path: machine(gpu()))
    monkeypatch.setattr(doctor_machine, "version", absent)
    assert [line.subject for line in islice(doctor.diagnose(tmp_path), 3)] == ["Python", "GPU", "Attention"]
