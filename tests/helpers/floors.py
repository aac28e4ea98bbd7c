"""Floors and rooms as the code has them: every module's imports, read from its source.

A floor is a top-level package. A room is a folder of it, or a file beside its folders. What each room is allowed to
import stands in tests.test_floors; the page and the picture made from this are tests.house.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from tests.helpers import ROOT

FLOORS = ("wanlora_tui", "daemon", "engine", "presets")


def files(floor: str, root: Path = ROOT) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of a floor."""
    for path in sorted((root / floor).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path) -> tuple[tuple[str, int], ...]:
    """(full dotted name, line) of all that a module imports: at its top, inside a function, or by `import_module` of a
    plain name."""
    return _imports(module if path.name == "__init__.py" else module.rpartition(".")[0], path.read_bytes())


@cache
def _imports(package: str, source: bytes) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*start, *([node.module] if node.module else [])])
            found += ((f"{name}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else node.func.id
                if isinstance(node.func, ast.Name)
                else ""
            )
            if called in ("import_module", "__import__") and (start_of := _start(node.args[0])):
                found.append((start_of, node.lineno))
    return tuple(found)


def _start(argument: ast.expr) -> str:
    """The text an argument begins with: a plain string, or the part of an f-string before its first value."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) and argument.values else argument
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def room_of(name: str, root: Path = ROOT) -> str:
    """The room that a dotted name lies in, without its floor: a folder, a file beside folders, or "" for the floor
    itself."""
    parts = name.strip(".").split(".")
    while parts and not (root.joinpath(*parts).is_dir() or root.joinpath(*parts).with_suffix(".py").exists()):
        parts.pop()  # a name within a module
    folder = parts if root.joinpath(*parts).is_dir() or len(parts) == 2 else parts[:-1]
    return ".".join(folder[1:])


def arrows(floor: str, root: Path = ROOT) -> dict[tuple[str, str], str]:
    """(from room, to room) within a floor -> the first import that draws it, as `file:line imports name`."""
    found: dict[tuple[str, str], str] = {}
    for module, path in files(floor, root):
        for name, line in imports(module, path):
            if name.split(".")[0] == floor:
                arrow = room_of(module, root), room_of(name, root)
                if arrow[0] != arrow[1] and arrow[1]:
                    found.setdefault(arrow, f"{path.relative_to(root)}:{line} imports {name}")
    return found


def rooms(floor: str, root: Path = ROOT) -> dict[str, list[Path]]:
    """Room -> its files; the topmost rooms first."""
    found: dict[str, list[Path]] = {}
    for module, path in files(floor, root):
        if room := room_of(module, root):
            found.setdefault(room, []).append(path)
    depth = depths(below(floor, root))
    return {room: found[room] for room in sorted(found, key=lambda room: (depth.get(room, 0), room))}


def below(floor: str, root: Path = ROOT) -> dict[str, set[str]]:
    """Room -> the rooms of its floor that it imports. The floor's own module is no room."""
    found: dict[str, set[str]] = {}
    for room, other in arrows(floor, root):
        if room:
            found.setdefault(room, set()).add(other)
            found.setdefault(other, set())
    return found


def depths(below: dict[str, set[str]]) -> dict[str, int]:
    """Room -> the number of arrows on the longest way down to it."""
    depth: dict[str, int] = {}
    for room in reversed(list(TopologicalSorter(below).static_order())):
        depth[room] = max((depth[above] + 1 for above in below if room in below[above]), default=0)
    return depth


def reduced(below: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same without the arrows that a longer way down implies (the transitive reduction)."""
    reach: dict[str, set[str]] = {}
    for room in TopologicalSorter(below).static_order():
        reach[room] = below[room].union(*(reach[other] for other in below[room]))
    return {room: below[room].difference(*(reach[other] for other in below[room])) for room in below}


def floors_below(floor: str, root: Path = ROOT) -> list[str]:
    """The other floors that a floor imports."""
    named = {name.split(".")[0] for module, path in files(floor, root) for name, _ in imports(module, path)}
    return [other for other in FLOORS if other in named and other != floor]


def charter(floor: str, room: str, root: Path = ROOT) -> str:
    """What a room is for (with room "" the floor itself): the first paragraph of its own docstring, on one line."""
    folder = root.joinpath(floor, *room.split("."))
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    return " ".join(text.split("\n\n")[0].split())
