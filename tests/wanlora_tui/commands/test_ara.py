"""`wanlora ara`: the real command on the tiny base, from options to a file that loads."""

from pathlib import Path

import pytest

from engine.recovery.__main__ import main
from tests.helpers.interface.harness import wanlora


def test_builds_a_file_and_prints_what_it_recovers(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = wanlora("ara", tiny, "--rank", "4", "--expert", "high", "--out", tmp_path / "a.safetensors")
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0] == str(tmp_path / "a.safetensors") and Path(lines[0]).is_file()
    assert lines[-1].startswith("all ") and "high noise: block 1/2" in said.stderr and "torchvision" not in said.stderr
    # in this process, which has torch already
    assert main([str(tiny), "--out", str(tmp_path / "a.safetensors")]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--full"], "calibration clips"),
        (["--rank", "99"], "rank 99"),
        (["--out", "a.txt"], ".safetensors"),
        (["--out", "no/a.safetensors"], "no such folder"),
        (["--out", "/proc/a.safetensors"], "/proc/a.safetensors: cannot be written: "),
        (["--clips", "empty"], "no readable clip"),
    ],
)
def test_mistakes_are_one_line(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
):
    """In this process, which has torch already: what the command becomes is seen above."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main([str(tiny), *options]) == 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_usage():
    assert wanlora("ara").returncode == 2
    assert wanlora("ara", "base", "--rank", "0").returncode == 2
    assert wanlora("ara", "base", "--precision", "qint2").returncode == 2
