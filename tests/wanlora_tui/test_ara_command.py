"""`wanlora ara`: the real command on the tiny base, from options to a file that loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.wanlora_tui.harness import ROOT, environment, wanlora


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ara") / "base"
    subprocess.run([sys.executable, "-m", "engine.tiny", str(folder)], cwd=ROOT, env=environment(), check=True, capture_output=True)
    return folder


def test_builds_a_file_and_prints_what_it_recovers(base: Path, tmp_path: Path):
    said = wanlora("ara", base, "--rank", "4", "--expert", "high", "--out", tmp_path / "a.safetensors")
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0] == str(tmp_path / "a.safetensors") and Path(lines[0]).is_file()
    assert lines[-1].startswith("all ") and "high noise: block 1/2" in said.stderr and "torchvision" not in said.stderr
    again = wanlora("ara", base, "--out", tmp_path / "a.safetensors")
    assert again.returncode == 1 and "exists already" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.parametrize(("options", "words"), [
    (["--full"], "calibration clips"), (["--rank", "99"], "rank 99"), (["--out", "a.txt"], ".safetensors"), (["--out", "no/a.safetensors"], "no such folder"),
    (["--out", "/proc/a.safetensors"], "/proc/a.safetensors: cannot be written: "),
    (["--clips", "empty"], "no readable clip"),
])  # fmt: skip
def test_mistakes_are_one_line(base: Path, tmp_path: Path, options: list[str], words: str):
    (tmp_path / "empty").mkdir()
    said = wanlora("ara", base, *options, cwd=tmp_path)
    assert said.returncode == 1 and words in said.stderr and "Traceback" not in said.stderr, said.stderr
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_model_that_is_not_there(tmp_path: Path):
    said = wanlora("ara", tmp_path / "nothing", cwd=tmp_path)
    assert said.returncode == 1 and "does not exist" in said.stderr and "Traceback" not in said.stderr


def test_usage():
    assert wanlora("ara").returncode == 2
    assert wanlora("ara", "base", "--rank", "0").returncode == 2
    assert wanlora("ara", "base", "--precision", "qint2").returncode == 2
