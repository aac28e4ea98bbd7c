"""A test that fails in company and passes alone lets the suite pass, and is named; one that fails alone does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import again
from tests.helpers import ROOT

pytestmark = pytest.mark.process
# No plugins but xdist, whose option is given: half of such a short pytest's time.
BARE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
FAILS = "def test_{name}(): assert False\n"
FAILS_ONCE = """from pathlib import Path

def test_{name}():
    seen = Path("{name}")
    before = seen.exists()
    seen.touch()
    assert before
"""


def suite(folder: Path, *tests: str) -> "subprocess.CompletedProcess[str]":
    """`make test` over these, to its end."""
    (folder / "test_some.py").write_text("\n".join(text.format(name=f"no_{i}") for i, text in enumerate(tests)))
    first = [sys.executable, "-m", "pytest", "-q", "--cache-clear", "-p", "no:xdist"]
    environment = os.environ | BARE
    code = subprocess.run(first, cwd=folder, env=environment, check=False, capture_output=True).returncode
    return subprocess.run(
        [sys.executable, "-m", "tests.again", str(code)],
        cwd=folder,
        env=environment | {"PYTEST_ADDOPTS": "-p xdist.plugin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_passes_alone_is_named_and_does_not_fail_the_suite(tmp_path: Path):
    said = suite(tmp_path, FAILS_ONCE, "def test_{name}(): pass\n", FAILS_ONCE)
    assert not said.returncode, said
    assert said.stdout.rstrip().endswith(
        "To be mended all the same:\n  test_some.py::test_no_0\n  test_some.py::test_no_2"
    )


def test_what_fails_alone_fails_the_suite(tmp_path: Path):
    said = suite(tmp_path, FAILS_ONCE, FAILS)
    assert said.returncode == 1 and "1 failed, 1 passed" in said.stdout, said
    assert "all the same" not in said.stdout


def test_many_failures_and_a_suite_that_did_not_run_are_believed(tmp_path: Path):
    said = suite(tmp_path, *[FAILS_ONCE] * (again.FEW + 1))
    assert said.returncode == 1 and not said.stdout, said
    said = suite(tmp_path, "import nothing_of_this_name\n")
    assert said.returncode == 2 and not said.stdout, said


def test_a_suite_that_passed_has_passed(tmp_path: Path):
    said = suite(tmp_path, "def test_{name}(): pass\n")
    assert said.returncode == 0 and not said.stdout, said
