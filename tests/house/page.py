"""docs/floors.md: a table of the rooms of each floor, made from the code."""

from tests.helpers.floors import FLOORS, below, charter, floors_below, rooms

INTRO = """\
# The house: four floors of rooms

<!-- Made by `make docs` (tests/house). Change the rooms' own docstrings instead of this page. -->

A floor is a package at the top of the tree, a room a folder of it or a file beside its folders. Arrows only point down:
the table in `tests/test_floors.py` says which room may import which, and its tests prove it. The picture leaves out the
arrows that a longer way down implies.

![Four floors, their rooms, and which room imports which](floors.svg)
"""
HEAD = "| room | what it is for | imports | files | lines, at most |\n|---|---|---|---|---|"
STEP = 100  # lines are rounded up to so many, so that the page does not change with every line of code


def page() -> str:
    """The whole page."""
    out = [INTRO]
    for floor in FLOORS:
        imports, found = below(floor), rooms(floor)
        arrows = sum(map(len, imports.values()))
        others = " and ".join(f"`{other}/`" for other in floors_below(floor)) or "no other floor"
        out.append(f"## `{floor}/`\n\n{charter(floor, '')} Imports {others}. {len(found)} rooms, {arrows} arrows.\n")
        out.append(HEAD)
        for room, files in found.items():
            lines = sum(len(path.read_text("utf-8").splitlines()) for path in files)
            about, down = charter(floor, room), ", ".join(sorted(imports.get(room, ())))
            about = about.replace("|", "\\|")
            out.append(f"| `{room}` | {about} | {down} | {len(files)} | {-(-lines // STEP) * STEP} |")
        out.append("")
    return "\n".join(out)
