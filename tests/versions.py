"""The versions that pyproject.toml allows, for `make resolve`, `make lowest` and `make newest`.

python -m tests.versions resolve    # asks pip for the newest set of each Python, installing nothing
python -m tests.versions lowest     # prints the lowest version of each dependency, as constraints for pip
python -m tests.versions newest     # prints that there are none
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from presets.machine.torch_build import REQUIREMENT_CUDA12
from tests.helpers import ROOT

PYPROJECT = ROOT / "pyproject.toml"
# an older one that was tried, 23.2, takes only what the Python that runs it could use too, whatever --python-version
# says
LEAST_PIP = Version("26.3")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
OF_CARDS = ("flash4", "cudnn-open")  # extras with kernels: nothing runs them without a card


def declared() -> dict[str, list[Requirement]]:
    """The requirements of each extra, and under "" those of the package itself."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(text) for text in texts] for extra, texts in groups.items()}


def bounds(requirement: Requirement) -> tuple[Version | None, Version | None]:
    """(the lowest version allowed, the first one no longer allowed); a pinned version is its own lowest and has no
    end."""
    by = {s.operator: Version(s.version) for s in requirement.specifier}
    return by.get(">=", by.get("==")), by.get("<")


def lowest() -> list[str]:
    """`name==version` for each dependency of the package and of its development."""
    found = declared()
    return sorted({f"{r.name}=={bounds(r)[0]}" for extra in found if extra not in OF_CARDS for r in found[extra]})


def resolve(python: str, *more: str) -> dict[str, tuple[str, str]]:
    """name -> (version, requirements) of the newest set for a Python, wheels alone. Raises CalledProcessError with
    pip's words on stderr."""
    wanted = [str(r) for requirements in declared().values() for r in requirements]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--dry-run",
                "--ignore-installed",
                "--only-binary=:all:",
                "--python-version",
                python,
                "--target",
                folder,
                "--quiet",
                "--report",
                report,
                *wanted,
                *more,
            ],
            check=True,
        )
        metadata = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    return {each["name"].lower(): (each["version"], " ".join(each.get("requires_dist", []))) for each in metadata}


def cuda_of(requirements: str) -> str:
    """The major version of the CUDA libraries that a torch asks for, "" without any."""
    return next((major for major in ("12", "13") if f"-cu{major}" in requirements), "")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.versions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("resolve", "lowest", "newest"))
    what = parser.parse_args().what
    if what != "resolve":
        print("\n".join(lowest()) if what == "lowest" else "# whatever is the newest")
        return 0
    if Version(version("pip")) < LEAST_PIP:
        sys.exit(
            f"pip {version('pip')} would resolve for this Python alone: run it through make resolve, which brings pip"
            f" {LEAST_PIP}"
        )
    for python in PYTHONS:
        for more in ((), (REQUIREMENT_CUDA12,)):
            try:
                found = resolve(python, *more)
            except subprocess.CalledProcessError:
                print(f"Python {python}: no set of versions fits{' with ' + more[0] if more else ''}", file=sys.stderr)
                return 1
            torch, requirements = found["torch"]
            cuda = cuda_of(requirements)
            print(
                f"Python {python}: {len(found)} packages, torch {torch} ({f'CUDA {cuda}' if cuda else 'without CUDA'}),"
                f" av {found['av'][0]}, transformers {found['transformers'][0]}",
                flush=True,
            )
            if more and cuda not in ("", "12"):
                print(f"{more[0]} is of CUDA {cuda}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
