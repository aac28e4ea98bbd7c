"""Which pictures there must be: of every screen and dialog, of every state at three sizes, and without colour."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from textual.screen import Screen

from tests.helpers.interface.dialogs import HELP, all_dialogs
from tests.wanlora_tui.screens import (
    test_snapshots_dashboard,
    test_snapshots_dialogs,
    test_snapshots_jobs,
    test_snapshots_wizard,
)
from tests.wanlora_tui.screens.conftest import PLAIN, SIZES, Sizes
from wanlora_tui.draft.steps import NAMES
from wanlora_tui.screens.compare import CompareScreen

MODULES = (test_snapshots_dashboard, test_snapshots_dialogs, test_snapshots_jobs, test_snapshots_wizard)
PICTURES = Path(__file__).with_name("__snapshots__")
# the picture that shows it, where its name is not that of the screen
SHOWN_IN = {
    "JobsScreen": "test_jobs[every_state]",
    "DashboardScreen": "test_run[running]",
    "CompareScreen": "test_films[compare]",
    "PictureScreen": "test_films[picture]",
    "ContactSheet": "test_films[sheet]",
    "LogScreen": "test_over_it[log]",
    "WizardScreen": "test_wizard[settings]",
    "HelpScreen": "test_over_it[help]",
    "StepHelp": "test_wizard[help]",
    "JobFileScreen": "test_job_file[checked]",
    "ChangeScreen": "test_over_it[change]",
    "CheckpointsScreen": "test_over_it[checkpoints]",
    "Ask": "test_wizard[leave]",
    "StepFindings": "test_wizard[findings]",
}
# a larger terminal shows these side by side: test_run has them
ONE_AT_A_TIME = {f"test_pane[{pane}]": SIZES[:2] for pane in ("preview", "log", "files")}


def cases(module: ModuleType) -> Iterator[tuple[str, str, Sizes]]:
    """Of all its tests: function, id and sizes of each picture or row of pictures."""
    for name, function in vars(module).items():
        if not name.startswith("test_"):
            continue
        for mark in getattr(function, "pytestmark", []):
            if mark.name == "parametrize" and "sizes" in mark.args[0]:
                for case in mark.args[1]:
                    yield name, case.id, case.values[-1]


def drawn() -> dict[str, dict[bool, set[tuple[int, int]]]]:
    """`test_jobs[500]` -> whether without colour -> the sizes that it is drawn at."""
    found: dict[str, dict[bool, set[tuple[int, int]]]] = {}
    for module in MODULES:
        for name, case, sizes in cases(module):
            state = case.removesuffix(PLAIN).removesuffix("-larger").removesuffix(PLAIN)
            of_state = found.setdefault(f"{name}[{state}]", {False: set(), True: set()})
            of_state[case.endswith(PLAIN)].update(sizes)
    return found


DRAWN = drawn()


@pytest.mark.parametrize("state", DRAWN)
def test_a_state_has_its_sizes_and_a_picture_without_colour(state: str):
    wanted = set(ONE_AT_A_TIME.get(state, SIZES))
    assert DRAWN[state][False] == wanted
    assert DRAWN[state][True] and DRAWN[state][True] <= wanted


def test_every_test_of_pictures_says_its_sizes():
    """So that no state is overlooked above."""
    for module in MODULES:
        tests = {name for name in vars(module) if name.startswith("test_")}
        assert tests == {name for name, _, _ in cases(module)}


def test_the_pictures_in_the_folder_are_these():
    wanted = {
        f"{module.__name__.rpartition('.')[2]}/{name}[{case}][{width}x{height}].svg"
        for module in MODULES
        for name, case, sizes in cases(module)
        for width, height in sizes
    }
    assert {str(path.relative_to(PICTURES)) for path in PICTURES.rglob("*.svg")} == wanted


def all_screens() -> set[str]:
    """Every screen and dialog that somebody sees: found by importing all of the interface."""
    dialogs = all_dialogs() | set(HELP)
    found: list[type[Screen[object]]] = [Screen]
    for each in found:
        found += each.__subclasses__()
    ours = [each for each in found if each.__module__.startswith("wanlora_tui.")]
    bases = {base for each in ours for base in each.__mro__[1:]}
    seen = {each for each in ours if each not in bases} | {CompareScreen}  # which another derives from
    return {each.__name__ for each in seen | dialogs}


def test_every_screen_has_pictures():
    lacking = {name for name in all_screens() if SHOWN_IN.get(name, f"test_dialog[{name}]") not in DRAWN}
    assert not lacking


def test_every_step_of_the_wizard_has_pictures():
    assert {f"test_wizard[{step}]" for step in NAMES} <= set(DRAWN)
