"""Which torch fits which driver: the table, the words, and what `make setup` asks of pip."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from presets.machine import torch_build
from presets.machine.torch_build import (
    FLASH4,
    REQUIREMENT,
    REQUIREMENT_CUDA12,
    Build,
    installed_build,
    misfit,
    read_driver,
    requirement,
)
from tests.helpers import ROOT
from tests.helpers.waiting import PATIENCE

CUDA13, CUDA12, CPU = Build("2.13.0", "13.0"), Build("2.10.0", "12.8"), Build("2.13.0+cpu")
OLD, MIDDLE, NEW = (
    ("470.82.01", "525.59", "450.80.02"),
    ("525.60", "525.60.13", "535.1", "550.54.14", "570.124.06", "579.99"),
    ("580", "580.65.06", "615.71", "1000.1"),
)


def test_the_range_is_that_of_pyproject():
    assert REQUIREMENT in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


@pytest.mark.parametrize(
    ("drivers", "wanted", "fitting"),
    [
        (("",), REQUIREMENT, {CUDA13, CUDA12}),
        (OLD, "", set()),
        (MIDDLE, REQUIREMENT_CUDA12, {CUDA12}),
        (NEW, REQUIREMENT, {CUDA13, CUDA12}),
    ],
    ids=["none", "old", "middle", "new"],
)
def test_the_torch_for_each_driver(drivers: tuple[str, ...], wanted: str, fitting: set[Build]):
    for driver in drivers:
        found, problem = requirement(driver, "x86_64")
        assert found == wanted and bool(problem) != bool(wanted)
        assert {build for build in (CUDA13, CUDA12, CPU) if misfit(build, driver) is None} == fitting, driver


def test_processors_without_wheels_of_cuda_12():
    assert requirement("570.1", "aarch64") == (
        "",
        "for aarch64 no torch that wanlora can use runs with NVIDIA driver 570.1: the least is 580",
    )
    assert requirement("580.1", "aarch64") == (REQUIREMENT, "")


def test_the_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_build.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "executable", "/with a space/python")
    wrong = misfit(CUDA13, "550.54.14")
    assert (
        wrong.message
        == "torch 2.13.0 is built for CUDA 13.0, which NVIDIA driver 550.54.14 does not serve: it wants 580 or newer"
    )
    assert (
        wrong.fix
        == "Install one that fits driver 550.54.14: '/with a space/python' -m pip uninstall -y torch && '/with a"
        " space/python' -m pip install 'torch>=2.10,<2.11'"
    )
    assert (
        misfit(CPU, "580.1").message == "torch 2.13.0+cpu is a build without CUDA"
        and "'torch>=2.10,<2.14'" in misfit(CPU, "580.1").fix
    )
    assert misfit(Build("2.10.0", "", "ROCm"), "580.1").message == "torch 2.10.0 is a build for ROCm, without CUDA"
    for build in (CUDA13, CUDA12, CPU):
        wrong = misfit(build, "470.82.01")
        assert "470.82.01" in wrong.message
        assert wrong.fix.startswith("Update the NVIDIA driver to 580") and "pip" not in wrong.fix


def test_a_library_that_serves_more_than_its_driver():
    """NVIDIA's cuda-compat, as images for data-centre cards bring it."""
    assert misfit(CUDA13, "550.54", cuda=13) is None
    assert misfit(CUDA13, "550.54", cuda=12) is not None


def test_a_cuda_that_nobody_here_knows_is_left_to_torch():
    later = Build("3.0", "14.1")
    assert misfit(later, "700.1") is None and misfit(later, "700.1", cuda=14) is None
    assert (
        misfit(later, "700.1", cuda=13).message
        == "torch 3.0 is built for CUDA 14.1, which NVIDIA driver 700.1 does not serve"
    )


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", CPU),
        (
            (
                "__version__ = '2.13.0'\ndebug = False\ncuda: Optional[str] = '13.0'\ngit_version = 'cf30153c'\nhip:"
                " Optional[str] = None\n"
            ),
            CUDA13,
        ),
        (
            "__version__ = '2.10.0'\ncuda: Optional[str] = None\nhip: Optional[str] = '7.1.25424'\n",
            Build("2.10.0", "", "ROCm"),
        ),
        ("nothing of the kind", None),
        (None, None),
    ],
)
def test_what_an_installed_torch_says_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, build: Build | None
):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('imported')")
    if text is not None:
        (tmp_path / "torch" / "version.py").write_text(text)
    monkeypatch.setattr(
        torch_build, "find_spec", lambda name: type("Spec", (), {"origin": str(tmp_path / name / "__init__.py")})
    )
    assert installed_build() == build


def test_the_torch_of_these_tests():
    import torch

    build = installed_build()
    assert build is not None and (build.version, build.cuda) == (torch.__version__, torch.version.cuda or "")


# The driver, and `make setup`: an nvidia-smi and a pip that only say what they are asked


def tool(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.process
@pytest.mark.parametrize(
    ("smi", "proc", "driver"),
    [
        ("echo 550.54.14; echo 550.54.14", None, "550.54.14"),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9", None, ""),
        (
            None,
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version:"
                "  gcc version 12.3.0\n"
            ),
            "535.183.01",
        ),
        (
            None,
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build  (root@)\n",
            "570.124.06",
        ),
        ("echo '[N/A]'", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n", "535.183.01"),
        ("printf '\\377\\n'", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n", "535.183.01"),
        (None, None, ""),
    ],
)
def test_reading_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: str | None, proc: str | None, driver: str
):
    if smi:
        tool(tmp_path / "bin", "nvidia-smi", smi)
    if proc:
        (tmp_path / "version").write_text(proc)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(torch_build, "PROC_DRIVER", tmp_path / "version")
    assert read_driver() == driver


def set_up(tmp_path: Path, smi: str, *, pip_fails_at: str = "nothing") -> tuple[list[list[str]], str]:
    """(what each pip was told after the first, which makes itself the newest one, what was said) by the real Makefile
    in a folder of its own; pip is a stand-in that notes its arguments."""
    tmp_path.mkdir(exist_ok=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "presets" / "machine").mkdir(parents=True)
    for name in ("__init__.py", "machine/__init__.py", "machine/torch_build.py"):
        shutil.copy(ROOT / "presets" / name, tmp_path / "presets" / name)
    tool(tmp_path / "tools", "nvidia-smi", smi)
    pip = tmp_path / "pip"
    tool(
        tmp_path / ".venv" / "bin",
        "python",
        f'case "$2" in pip) shift 2; echo "$@" >> {pip}; case "$*" in *{pip_fails_at}*) exit 1;; esac;;'
        f' *) exec {sys.executable} "$@";; esac',
    )
    done = subprocess.run(
        ["make", "setup"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    newest, *others = [line.split() for line in pip.read_text().splitlines()]
    assert newest[0] == "install" and newest[-2:] == ["--upgrade", "pip"]
    return others, done.stderr


@pytest.mark.parametrize(
    ("driver", "asked", "told"),
    [
        (
            "470.82.01",
            "",
            (
                "NVIDIA driver 470.82.01 is too old for every torch that wanlora can use: the least is 525.60. Update"
                " the NVIDIA driver to 580 or newer"
            ),
        ),
        ("525.60.13", REQUIREMENT_CUDA12, "serves CUDA 12"),
        ("550.54.14", REQUIREMENT_CUDA12, "serves CUDA 12"),
        ("570.124.06", REQUIREMENT_CUDA12, "serves CUDA 12"),
        ("580.65.06", "", ""),
        ("", "", ""),
    ],
)
def test_make_setup_asks_pip_for_the_torch_that_fits(tmp_path: Path, driver: str, asked: str, told: str):
    if asked and torch_build.platform.machine() != "x86_64":
        pytest.skip("the registry's wheels for CUDA 12 are for x86_64")
    (words,), said = set_up(tmp_path, f"echo {driver}" if driver else "exit 9")
    assert words[0] == "install" and words[-2 if asked else -1] == ".[dev]" and words[-1] == (asked or ".[dev]")
    assert told in said if told else "NVIDIA" not in said or "build without CUDA" in said


@pytest.mark.parametrize(
    ("driver", "cards", "wanted"),
    [
        ("580.65.06", ("8.9", "9.0"), True),
        ("580.65.06", ("10.0",), True),
        ("580.65.06", ("8.9", "12.0"), False),
        ("580.65.06", ("[N/A]",), False),
        ("570.124.06", ("9.0",), False),
    ],
)
def test_make_setup_installs_the_faster_kernels_where_a_card_can_use_them(
    tmp_path: Path, driver: str, cards: tuple[str, ...], wanted: bool
):
    lines = " ".join(f"'{card}'" for card in cards)
    smi = f"case $1 in *compute_cap*) printf '%s\\n' {lines};; *) echo {driver};; esac"
    pips, said = set_up(tmp_path, smi)
    assert [list(FLASH4)] == [words[-2:] for words in pips[1:]] if wanted else len(pips) == 1
    assert "slower on this card" not in said
    if wanted:
        said = set_up(tmp_path / "again", smi, pip_fails_at="flash-attn")[1]
        assert "slower on this card" in said, "no reason to stop"


def test_it_needs_nothing_that_is_not_of_python(tmp_path: Path):
    """It runs in an empty environment."""
    said = subprocess.run(
        [sys.executable, "-S", "-m", "presets.machine.torch_build"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert said.returncode == 0, said.stderr
