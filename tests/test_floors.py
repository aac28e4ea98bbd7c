"""Four floors of rooms, arrows only downwards: `wanlora_tui` -> `daemon`, `presets`; `daemon` -> `presets`; `engine` ->
`presets`.

Proven twice: by what a fresh interpreter has loaded after every module of a floor was imported, and by reading every
import statement there is, also those inside functions, which only run when their function does.
"""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest

from tests.helpers import ROOT, UNCOMPILED
from tests.helpers.floors import arrows, charter, depths, files, imports, reduced, rooms
from tests.helpers.waiting import PATIENCE
from tests.house.page import page
from tests.house.picture import picture

# floor -> floors it may import
BELOW = {"wanlora_tui": {"daemon", "presets"}, "daemon": {"presets"}, "engine": {"presets"}, "presets": set()}
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
BANNED = {"wanlora_tui": HEAVY, "daemon": HEAVY | {"textual"}, "engine": {"textual"}, "presets": HEAVY | {"textual"}}
DAEMON_FOR_CLIENTS = {
    "wire",
    "errors",
    "settings",
    "services",
}  # what the interface may know of the daemon: no queue, no store, no service
CUDA_ONLY = {
    f"engine.kernels.triton_{of}" for of in ("conv", "fp8", "int8", "low_rank", "norm_rope")
}  # need Triton, which PyTorch's CPU builds come without

# What each room may import of its own floor, the topmost room first. A wall that nobody needs open stays closed.
ROOMS = {
    "wanlora_tui": (
        """
        cli             -> arguments commands commands.far output terminal
        commands.far    -> commands output remote terminal transfer
        commands.jobs   -> commands draft feeds output terminal
        commands        -> app draft feeds output remote terminal
        arguments       ->
        screenshot      -> actions feeds screens terminal themes
        app             -> actions draft feeds output remote screens screens.jobs screens.wizard terminal themes threads
                           transfer widgets
        screens.jobs    -> actions draft feeds output screens terminal widgets
        screens.wizard  -> actions draft feeds output screens screens.frame widgets
        screens.frame   -> actions draft output widgets
        screens         -> actions feeds film output plot terminal transfer widgets
        plot            -> actions output widgets
        widgets         -> actions draft feeds output styled_once terminal
        film            -> actions output terminal
        transfer        -> output remote terminal
        draft           -> output
        feeds           -> output remote
        output          ->
        actions         ->
        themes          -> terminal
        styled_once     ->
        terminal        ->
        remote          ->
        threads         ->
    """
    ),
    "daemon": (
        """
        __main__   -> log_file server settings wire
        server     -> jobs log_file processes sockets tcp wire zmtp
        sockets    -> wire zmtp
        tcp        -> background_io settings wire zmtp
        protocol_page -> wire zmtp
        jobs       -> background_io events followup machine processes queue settings table wire
        machine    -> background_io processes queue wire
        table      -> queue
        followup   -> background_io processes queue settings wire
        queue      -> processes wire
        events     -> background_io wire
        background_io ->
        settings   ->
        log_file   ->
        wire       -> errors processes services zmtp
        services   -> errors
        processes  ->
        errors     ->
        zmtp       ->
    """
    ),
    "engine": (
        """
        __main__   -> run system
        run        -> follow memory parallel runfolder system training
        follow     -> executor parallel training
        training   -> adapters data encode executor memory parallel preview runfolder system wan weights
        judge      -> data preview toy_base
        preview    -> data encode system
        recovery   -> adapters data encode memory system wan weights
        memory     -> encode system wan
        executor   -> adapters parallel system wan weights
        adapters   -> system wan weights
        demo       -> toy_base
        toy_base   -> encode
        encode     -> data kernels system weights
        weights    -> system wan
        wan        -> kernels system
        kernels    ->
        parallel   -> runfolder system
        runfolder  -> system
        data       -> system
        system     ->
    """
    ),
    "presets": (
        """
        rules       -> base clips disk errors facts file_names files findings job machine planner recipes runs text
        report      -> atomic_file clips errors files job runs text
        diagnosis   -> clips errors findings job planner runs
        recipes     -> clips job machine planner
        planner     -> atomic_file base clips errors facts file_names job machine text
        facts       -> base caches clips clips.likeness disk errors file_names files findings job look machine runs
        caches      ->
        base        -> disk errors file_names files findings job look text
        clips.likeness -> clips job look machine
        clips       -> errors file_names findings job look machine
        machine     -> errors file_names text
        runs        -> errors files job text
        job         -> atomic_file disk errors file_names files
        findings    -> errors
        file_names  -> errors text
        errors      -> text
        text        ->
        atomic_file ->
        files       ->
        disk        ->
        look        ->
    """
    ),
}
MOST_FILES = 14  # in one folder: about twelve, with a little room


def allowed(floor: str) -> dict[str, set[str]]:
    """Room -> the rooms of its floor that it may import."""
    whole = re.sub(r"\n(?![^\n]*->)", " ", ROOMS[floor].strip())  # a line without an arrow belongs to the one above
    lines = [line.split("->") for line in whole.splitlines()]
    return {room.strip(): set(below.split()) for room, below in lines}


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
    program = (
        "import importlib, json, sys\nfor name in json.loads(sys.argv[1]):"
        " importlib.import_module(name)\nprint(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, json.dumps(names)],
        cwd=ROOT,
        env=os.environ | UNCOMPILED,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return frozenset(json.loads(said.stdout.splitlines()[-1]))


@pytest.mark.parametrize("floor", BELOW)
def test_no_import_statement_goes_up(floor: str):
    assert len(list(files(floor))) > 10, "the floor was not found"
    assert violations(floor) == []


@pytest.mark.parametrize("floor", BELOW)
def test_a_room_imports_what_its_table_says_and_no_other(floor: str):
    table, drawn = allowed(floor), arrows(floor)
    assert [why for (room, below), why in drawn.items() if below not in table.get(room, set())] == []
    unused = {(room, below) for room in table for below in table[room]} - drawn.keys()
    assert not unused, "nothing needs these any more: take them out of the table"


@pytest.mark.parametrize("floor", BELOW)
def test_arrows_between_rooms_go_down(floor: str):
    """The table has no circle, and its order is one in which each room stands above what it imports."""
    table = allowed(floor)
    list(TopologicalSorter(table).static_order())
    order = list(table)
    assert [(room, below) for room in table for below in table[room] if order.index(below) <= order.index(room)] == []


@pytest.mark.parametrize("floor", BELOW)
def test_every_room_has_a_charter_and_few_files(floor: str):
    for folder in sorted({path.parent for _, path in files(floor)}):
        assert len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) <= MOST_FILES, (
            f"{folder} is full: argue for a new room"
        )
    for room in allowed(floor):
        if room != "__main__":
            assert charter(floor, room).endswith((".", ":")), f"{floor}.{room} does not say what it is for"


def test_the_same_folders_hold_the_tests():
    """A folder of tests is a folder of the product, so that whoever looks for the test of a module finds it."""
    folders = {
        path.parent.relative_to(ROOT / "tests")
        for floor in BELOW
        for path in (ROOT / "tests" / floor).rglob("test_*.py")
    }
    assert [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


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
        ("presets", "import torch"),
        ("presets", "from daemon.wire.paths import places"),
        ("presets", "def f():\n    from engine.adapters import lora"),
        ("daemon", "def f():\n    import torch.distributed.run as run"),
        ("daemon", "from wanlora_tui.output import formatting"),
        ("daemon", "from textual.app import App"),
        ("engine", "class C:\n    def f(self):\n        import textual"),
        ("engine", "from daemon.wire.client import Client"),
        ("wanlora_tui", "from engine.run import run_job"),
        ("wanlora_tui", "from importlib import import_module\nx = import_module('engine.run')"),
        ("wanlora_tui", "from daemon.queue.job_queue import Queue"),
        ("wanlora_tui", "from daemon.jobs import job_store"),
        ("wanlora_tui", "import importlib\nx = importlib.import_module(f'engine.{1}')"),
    ],
)
def test_the_scan_sees_a_hidden_import(tmp_path: Path, floor: str, line: str):
    module = tmp_path / floor / "deep" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text(f'"""A module."""\n\nimport msgspec\nfrom . import sibling\nfrom ..wide import thing\n\n{line}\n')
    [found] = violations(floor, tmp_path)
    assert found.startswith(f"{floor}/deep/module.py:")


@pytest.mark.parametrize(
    "line",
    [
        "from engine.training import trainer",
        "def f():\n    from ..training.trainer import train",
        "import engine.training.trainer as t",
    ],
)
def test_the_scan_sees_a_way_into_another_room(tmp_path: Path, line: str):
    for name in ("wan/block", "training/trainer"):
        (tmp_path / "engine" / name).parent.mkdir(parents=True)
        (tmp_path / "engine" / f"{name}.py").write_text(f"{line}\n" if name == "wan/block" else "")
    assert list(arrows("engine", tmp_path)) == [("wan", "training")]


def test_the_page_of_the_house_and_its_picture_are_up_to_date():
    for name, made in (("floors.md", page()), ("floors.svg", picture())):
        assert (ROOT / "docs" / name).read_text("utf-8") == made, "stale: make docs"


def test_depths_and_the_arrows_that_a_longer_way_implies():
    below = {
        "run": {"training", "system"},
        "training": {"wan", "system"},
        "wan": {"system"},
        "system": set(),
        "demo": set(),
    }
    assert depths(below) == {"run": 0, "training": 1, "wan": 2, "system": 3, "demo": 0}
    assert reduced(below) == {
        "run": {"training"},
        "training": {"wan"},
        "wan": {"system"},
        "system": set(),
        "demo": set(),
    }


Box = tuple[float, float, float, float]  # left, top, right, bottom


def boxes(parent: ET.Element) -> list[Box]:
    sides = [[float(r.attrib[side]) for side in ("x", "y", "width", "height")] for r in parent.findall("{*}rect")]
    return [(x, y, x + width, y + height) for x, y, width, height in sides]


def points(path: str) -> list[tuple[float, float]]:
    """Points along a path of M, C and V commands."""
    out: list[tuple[float, float]] = []
    for command, text in re.findall(r"([MCV])([^MCV]*)", path):
        numbers = [float(n) for n in text.split()]
        if command == "M":
            out.append((numbers[0], numbers[1]))
            continue
        (x, y), straight = out[-1], command == "V"
        ends = (
            [(x, y), (x, y), (x, numbers[0]), (x, numbers[0])]
            if straight
            else [(x, y), *zip(numbers[::2], numbers[1::2], strict=True)]
        )
        for i in range(1, 21):
            t = i / 20
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            out.append(tuple(sum(w * end[axis] for w, end in zip(weights, ends, strict=True)) for axis in (0, 1)))
    return out


def test_the_picture_shows_each_room_once_and_nothing_lies_on_a_box():
    svg = ET.fromstring(picture())
    shown = [text.text for text in svg.iterfind("{*}g/{*}text")]
    assert sorted(shown) == sorted(room for floor in BELOW for room in rooms(floor))
    bands, found = boxes(svg), [box for group in svg.findall("{*}g") for box in boxes(group)]
    assert len(bands) == len(BELOW) and len(found) == len(shown)
    for one in found:
        assert any(b[0] < one[0] and b[1] < one[1] and one[2] < b[2] and one[3] < b[3] for b in bands), one
    for a, b in combinations(found, 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1], (a, b)
    ways = [points(path.attrib["d"]) for path in svg.iterfind("{*}path") if path.attrib["class"] == "arrow"]
    assert len(ways) > len(found) / 2
    for way in ways:
        for x, y in way:
            assert not any(b[0] < x < b[2] and b[1] + 0.1 < y < b[3] - 0.1 for b in found), (way[0], way[-1], x, y)
