"""What the packages import is declared in pyproject.toml, and every declared dependency has a lower and an upper
bound."""

import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_floors import BELOW, ROOT, files, imports
from tests.versions import OF_CARDS, bounds, cuda_of, declared, lowest

# that are not called as what is imported of them
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "zmq": "pyzmq",
    "pynvml": "nvidia-ml-py",
    "optimum": "optimum-quanto",
    "pillow_jxl": "pillow-jxl-plugin",
    "flash_attn": "flash-attn-4",
    "cudnn": "nvidia-cudnn-frontend",
}
# torch's builds for CUDA bring the one version that they were made with; the others have no use for it
OF_TORCH = {"triton"}


def imported(floor: str) -> dict[str, str]:
    """Distribution -> the place of one import of it."""
    found = {}
    for module, path in files(floor):
        for name, line in imports(module, path):
            first = name.partition(".")[0]
            if first not in sys.stdlib_module_names and first not in BELOW:
                found[canonicalize_name(DISTRIBUTIONS.get(first, first))] = f"{path.relative_to(ROOT)}:{line}"
    return found


@pytest.mark.parametrize("floor", BELOW)
def test_what_is_imported_is_declared(floor: str):
    named = {
        canonicalize_name(r.name) for extra, requirements in declared().items() if extra != "dev" for r in requirements
    }
    missing = {name: place for name, place in imported(floor).items() if name not in named | OF_TORCH}
    assert missing == {}


def test_the_scan_finds_them():
    assert {"rich", "tqdm", "tokenizers", "pillow", "flash-attn-4", "bitsandbytes"} <= set().union(
        *(imported(floor) for floor in BELOW)
    )


@pytest.mark.parametrize("requirement", [r for requirements in declared().values() for r in requirements], ids=str)
def test_every_dependency_has_both_bounds(requirement: Requirement):
    low, high = bounds(requirement)
    assert low is not None
    if high is None:
        assert [s.operator for s in requirement.specifier] == ["=="], "neither pinned nor bounded"
    else:
        assert low < high


def test_the_constraints_of_the_lowest_set():
    named = {Requirement(line).name: str(Requirement(line).specifier) for line in lowest()}
    assert (
        named["torch"] == "==2.10"
        and named["textual"] == "==8.2.8"
        and named["pytest"] == "==8.4"
        and not {"flash-attn-4", "nvidia-cudnn-frontend"} & set(named)
    )
    assert set(named) == {
        r.name for extra, requirements in declared().items() if extra not in OF_CARDS for r in requirements
    }


def test_which_cuda_a_torch_is_of():
    assert (
        cuda_of("nvidia-cudnn-cu12==9.10.2.21 ; triton==3.6.0") == "12"
        and cuda_of("cuda-toolkit[cublas]==13.0.2 nvidia-cudnn-cu13==9.19") == "13"
        and cuda_of("sympy") == ""
    )
