"""README, CONTRIBUTING and the pages of docs/ name what is there: paths, modules, functions, commands, make targets.

Whether what they say about it is true is for people to read. The pages made from code are compared with it elsewhere:
tests/test_floors.py, tests/presets/rules/test_docs.py.
"""

import ast
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO

import pytest

from tests.helpers import ROOT
from tests.helpers.floors import FLOORS, rooms
from wanlora_tui.cli import parser

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
CODE = (*FLOORS, "tests", "benchmarks")
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)
FILES = {"daemon.lock"}  # that only look like modules
DOTTED = re.compile(rf"(?:{'|'.join(CODE)})(?:\.\w+)+")


def code_in(text: str) -> list[str]:
    """What stands between backticks, and the lines of fenced blocks."""
    inline = re.findall(r"`([^`]+)`", FENCE.sub("", text))
    return [" ".join(span.split()) for span in inline] + "".join(FENCE.findall(text)).splitlines()


@cache
def defined() -> dict[str, set[str]]:
    """Module -> the names defined in it: functions, classes, methods, variables."""
    found: dict[str, set[str]] = {}
    for path in (path for package in CODE for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names = found.setdefault(".".join(parts[:-1] if parts[-1] == "__init__" else parts), set())
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return found


def is_path(word: str) -> bool:
    """Whether a file or folder of ours is there. A Python file may be named without its folder."""
    if word.partition("/")[0] in (*CODE, "docs"):
        return (ROOT / word).exists()
    return not word.endswith(".py") or word.startswith("__") or any(m.split(".")[-1] == word[:-3] for m in defined())


def is_module(name: str) -> bool:
    """Whether a dotted name is a module, or a name defined in one."""
    module, _, last = name.rpartition(".")
    return name in defined() or last in defined().get(module, ())


def is_defined(*names: str) -> bool:
    """Whether some module defines all these names: a function, or a class with a method."""
    return any(names_there.issuperset(names) for names_there in defined().values())


def is_command(line: str) -> bool:
    """Whether the parser of `wanlora` takes this; arguments may be left out."""
    words = shlex.split(line.replace("[", "").replace("]", "").replace("STEP", "250"), comments=True)
    if not words[1:]:
        return True
    said = StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            parser().parse_args(words[1:])
    except SystemExit as e:
        return e.code == 0 or "the following arguments are required" in said.getvalue()
    return True


def wrong(text: str) -> list[str]:
    """What a page names and is not there."""
    targets = (ROOT / "Makefile").read_text().partition(".PHONY:")[2].partition("\n")[0].split()
    found = []
    for line in code_in(text):
        words = [word.strip("()[],;:\"'") for word in line.split()]
        found += [word for word in words if re.fullmatch(r"[\w./-]+", word) and not is_path(word)]
        dotted = [word for word in words if DOTTED.fullmatch(word) and not word.endswith(".py") and word not in FILES]
        found += [word for word in dotted if not is_module(word)]
        if named := re.fullmatch(r"(?:([A-Z]\w*)\.)?(\w+)\(\)|([A-Z]\w*[a-z]\w*)", line):
            found += [] if is_defined(*filter(None, named.groups())) else [line]
        found += [f"make {name}" for name in re.findall(r"^make ([a-z]+)", line) if name not in targets]
        found += [part for part in re.split(r" && ", line) if part.startswith("wanlora ") and not is_command(part)]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str):
    text = (ROOT / page).read_text("utf-8")
    assert wrong(text) == []
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize(
    "text",
    [
        "`engine/training/streamed.py`",
        "`streamed.py`",
        "`docs/nothing.md`",
        "```\n.venv/bin/pytest tests/engine/test_nothing.py\n```",
        "`presets.look.Nothing`",
        "`python -m benchmarks.nothing`",
        "`no_such_function()`",
        "`EventLog.no_such_method()`",
        "`NoSuchClass`",
        "`make nothing`",
        "`wanlora nothing`",
        "```\nwanlora jobs && wanlora attach --nothing\n```",
    ],
)
def test_a_name_of_nothing_is_seen(text: str):
    assert wrong(f"Look at {text}, and at `presets/look.py`, `look.py`, `presets.look.Look`, `EventLog.emit()`.")
    assert not wrong("Look at `presets/look.py`, `look.py`, `presets.look.Look`, `EventLog.emit()`, `wanlora ara`.")


def test_where_things_are_names_every_room_and_nothing_else():
    tree = (ROOT / "README.md").read_text("utf-8").partition("## Where things are")[2].partition("```\n")[2]
    named: list[str] = []
    for line in tree.partition("```")[0].splitlines():
        names, _, about = line.strip().partition("  ")
        assert about.strip(), f"no word about {names}"
        if not line.startswith(" "):
            top = names
        named += names.split() if top == names else [top + name for name in names.split()]
    there = {
        f"{floor}/{room.replace('.', '/')}{'/' if (ROOT / floor / room.replace('.', '/')).is_dir() else '.py'}"
        for floor in FLOORS
        for room in rooms(floor)
    }
    for folder in ("tests", "benchmarks", "docs"):
        inside = [path for path in (ROOT / folder).iterdir() if path.is_dir() and path.name not in FLOORS]
        there |= {f"{folder}/{path.name}/" for path in inside if not path.name.startswith(("_", "."))}
    there |= {f"{folder}/" for folder in (*CODE, "docs")}
    assert sorted(named) == sorted(there)
