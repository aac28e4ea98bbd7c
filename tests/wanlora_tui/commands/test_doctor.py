"""What doctor says of machines that CI has not."""

import importlib.metadata
import tomllib
from importlib.metadata import PackageNotFoundError
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from presets.job.gpu_shares import RECORDED
from presets.machine.machine import read_machine
from presets.machine.torch_build import Build
from tests.helpers import ROOT
from tests.helpers.facts import gpu, machine
from wanlora_tui.commands import doctor, doctor_machine


def absent(name: str) -> NoReturn:
    raise PackageNotFoundError(name)


def alone(name: str) -> str:
    return "4.0.0" if name == "flash-attn-4" else absent(name)


@pytest.mark.parametrize(
    ("capability", "package"),
    [
        ((9, 0), "flash-attn-4"),
        ((10, 0), "flash-attn-4"),
        ((8, 6), ""),
        ((8, 9), ""),
        ((8, 0), "nvidia-cudnn-frontend"),
        ((12, 0), "nvidia-cudnn-frontend"),
        ((12, 1), "nvidia-cudnn-frontend"),
    ],
)
def test_a_card_is_offered_the_kernels_that_were_written_for_it(monkeypatch, capability, package):
    monkeypatch.setattr(doctor_machine, "version", absent)
    lines = list(doctor_machine.attention(machine(gpu(capability=capability))))
    assert len(lines) == bool(package)
    for line in lines:
        assert line.level == "ok", "a wish, not a fault"
        assert "pip install" in line.fix and f"'{package}>=" in line.fix and "'nvidia-cutlass-dsl[cu13]>=" in line.fix


def test_cards_of_both_kinds_are_offered_both(monkeypatch):
    monkeypatch.setattr(doctor_machine, "version", lambda name: "1.0")
    lines = list(doctor_machine.attention(machine(gpu(), gpu(index=1, capability=(12, 0)))))
    assert [line.text.split()[0] for line in lines] == ["flash-attn-4", "nvidia-cudnn-frontend"]


def settings_lines(folder: Path) -> list[tuple[str, str]]:
    return [(line.level, line.text + line.fix) for line in doctor._settings(folder)]


def test_what_is_wrong_with_the_settings_and_the_secrets_is_named(tmp_path: Path):
    assert settings_lines(tmp_path) == []
    (tmp_path / "settings.toml").write_text("[daemon]\nrestarts = 3\n")
    assert settings_lines(tmp_path) == [("ok", str(tmp_path / "settings.toml"))]
    (tmp_path / "secrets.toml").write_text('[slack]\nurl = "https://x.example/1"\n')
    (tmp_path / "secrets.toml").chmod(0o644)
    (tmp_path / "settings.toml").write_text("[daemon]\nrestart = 3\n")
    (level, text), (secret_level, secret_text) = settings_lines(tmp_path)
    assert level == secret_level == "fail" and "unknown field `restart`" in text and "chmod 600" in secret_text
    (tmp_path / "secrets.toml").chmod(0o600)
    (tmp_path / "secrets.toml").write_text("token = [")
    assert "not valid TOML" in settings_lines(tmp_path)[1][1] and "[" not in settings_lines(tmp_path)[1][1][:-60]
    (tmp_path / "settings.toml").unlink()
    (tmp_path / "settings.toml").symlink_to(tmp_path / "nothing")
    assert settings_lines(tmp_path)[0][0] in ("ok", "fail")


def test_the_versions_are_those_of_the_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert list(doctor_machine.FLASH4) == extras["flash4"]
    assert list(doctor_machine.CUDNN_OPEN) == extras["cudnn-open"]


def test_it_is_of_cuda_13(monkeypatch):
    monkeypatch.setattr(doctor_machine, "version", absent)
    (line,) = doctor_machine.attention(machine(gpu(driver="570.1")))
    assert line.level == "ok" and "a driver that serves CUDA 13" in line.text and not line.fix


def test_what_is_installed_is_named(monkeypatch):
    monkeypatch.setattr(doctor_machine, "version", lambda name: "4.0.0")
    (line,) = doctor_machine.attention(machine(gpu()))
    assert "flash-attn-4 4.0.0" in line.text and not line.fix


def test_what_it_needs_and_has_not_is_named(monkeypatch):
    monkeypatch.setattr(doctor_machine, "version", alone)
    (line,) = doctor_machine.attention(machine(gpu()))
    assert "but not nvidia-cutlass-dsl-libs-cu13" in line.text and "'nvidia-cutlass-dsl[cu13]>=" in line.fix


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


def test_the_way_between_gpus_is_measured_where_there_are_two_and_it_says_why_not_on_one():
    assert list(doctor_machine.link(machine())) == []  # without any, that is said already
    (line,) = doctor_machine.link(machine(gpu()))
    assert line.level == "ok" and "not measured" in line.text and "one is here" in line.text
    pairs = [{"from": 0, "to": 1, "gbps": 370.2, "direct": True}, {"from": 1, "to": 0, "gbps": 365.0, "direct": True}]
    (line,) = doctor_machine.link_lines(pairs)
    assert line.text == "365 GB/s one way between 2 GPUs, directly; the slowest is 1 to 0"
    (line,) = doctor_machine.link_lines([{**pairs[0], "direct": False}, pairs[1]])
    assert "through the host's memory" in line.text


def test_more_gpus_than_were_measured_together_are_spoken_of():
    assert list(doctor_machine.many_gpus(machine(*(gpu(index=i) for i in range(RECORDED))))) == []
    (line,) = doctor_machine.many_gpus(machine(*(gpu(index=i) for i in range(8))))
    assert line.level == "ok" and line.text.startswith(f"a job may name all 8; more than {RECORDED} in one job")


@pytest.mark.process
def test_two_gpus_that_torch_does_not_see_are_a_warning(monkeypatch, tmp_path: Path):
    """The real program, on a machine that has none, and in a folder with an engine of the user's."""
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/__init__.py").write_text("raise SystemExit('another engine')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (line,) = doctor_machine.link(machine(gpu(), gpu(index=1)))
    assert line.level == "warn" and "torch sees fewer than two GPUs" in line.text
