"""Four floors, arrows only downwards: `wanlora_tui` -> `daemon`, `presets`; `daemon` -> `presets`; `engine` -> `presets`.

Proven twice: by what a fresh interpreter has loaded after every module of a floor was imported, and by reading every
import statement there is, also those inside functions, which only run when their function does.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
BELOW = {"wanlora_tui": {"daemon", "presets"}, "daemon": {"presets"}, "engine": {"presets"}, "presets": set()}  # floor -> floors it may import
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
BANNED = {"wanlora_tui": HEAVY, "daemon": HEAVY | {"textual"}, "engine": {"textual"}, "presets": HEAVY | {"textual"}}
DAEMON_FOR_CLIENTS = {"client", "launch", "paths", "protocol"}  # what the interface may know of the daemon: no queue, no store, no service
CUDA_ONLY = {"engine.triton_kernels"}  # needs Triton, which PyTorch's CPU builds come without


def files(floor: str, root: Path = ROOT) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of a floor."""
    for path in sorted((root / floor).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """(full dotted name, line) of whatever a module imports, at its top, inside a function or by `import_module` of a plain name."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((f"{name}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
            if called in ("import_module", "__import__") and (start_of := _start(node.args[0])):
                yield start_of, node.lineno


def _start(argument: ast.expr) -> str:
    """The text an argument begins with: a plain string, or the part of an f-string before its first value."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) and argument.values else argument
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def violations(floor: str, root: Path = ROOT) -> list[str]:
    """`file:line imports name`, for every import that goes up, sideways, or to a package the floor must do without."""
    forbidden = BANNED[floor] | (BELOW.keys() - BELOW[floor] - {floor})
    found = []
    for module, path in files(floor, root):
        for name, line in imports(module, path):
            first, _, rest = name.partition(".")
            inside = floor == "wanlora_tui" and first == "daemon" and rest.partition(".")[0] not in DAEMON_FOR_CLIENTS
            if first in forbidden or inside or first == "tests":
                found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


@cache
def loaded(*floors: str) -> frozenset[str]:
    """Top-level packages in a fresh interpreter that has imported every module of the floors."""
    names = [name for floor in floors for name, _ in files(floor) if name not in CUDA_ONLY or find_spec("triton")]
    program = "import importlib, json, sys\nfor name in json.loads(sys.argv[1]): importlib.import_module(name)\nprint(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    said = subprocess.run([sys.executable, "-c", program, json.dumps(names)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert said.returncode == 0, said.stderr
    return frozenset(json.loads(said.stdout.splitlines()[-1]))


@pytest.mark.parametrize("floor", BELOW)
def test_no_import_statement_goes_up(floor: str):
    assert len(list(files(floor))) > 10, "the floor was not found"
    assert violations(floor) == []


@pytest.mark.parametrize("floor", BELOW)
def test_a_fresh_interpreter_loads_only_what_lies_below(floor: str):
    there = loaded(floor)
    assert floor in there and "msgspec" in there
    assert there & (BANNED[floor] | (BELOW.keys() - BELOW[floor] - {floor})) == set()


def test_the_interface_with_a_daemon_in_one_process_stays_light():
    assert loaded("wanlora_tui", "daemon") & HEAVY == set()


@pytest.mark.parametrize(
    ("floor", "line"),
    [
        ("presets", "import torch"), ("presets", "from daemon.paths import places"), ("presets", "def f():\n    from engine import lora"),
        ("daemon", "def f():\n    import torch.distributed.run as run"), ("daemon", "from wanlora_tui import text"), ("daemon", "from textual.app import App"),
        ("engine", "class C:\n    def f(self):\n        import textual"), ("engine", "from daemon.client import Client"),
        ("wanlora_tui", "from engine.run import run_job"), ("wanlora_tui", "from importlib import import_module\nx = import_module('engine.run')"),
        ("wanlora_tui", "from daemon.queue import Queue"), ("wanlora_tui", "from daemon import store"), ("wanlora_tui", "import importlib\nx = importlib.import_module(f'engine.{1}')"),
    ],
)  # fmt: skip
def test_the_scan_sees_a_hidden_import(tmp_path: Path, floor: str, line: str):
    module = tmp_path / floor / "deep" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text(f'"""A module."""\n\nimport msgspec\nfrom . import sibling\nfrom ..wide import thing\n\n{line}\n')
    [found] = violations(floor, tmp_path)
    assert found.startswith(f"{floor}/deep/module.py:")
