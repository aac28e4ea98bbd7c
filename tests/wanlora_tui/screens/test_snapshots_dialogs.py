"""Pictures of the dialogs, as they stand when they are opened, over an empty screen."""

from pathlib import Path

import pytest

from tests.helpers.interface.dialogs import all_dialogs, one_of_each
from tests.wanlora_tui.screens.conftest import SIZES, Picture, Sizes, at_sizes
from tests.wanlora_tui.screens.test_dialog_help import Asking

# in pictures of their own, over the screen that opens them, with what was typed
ELSEWHERE = {"JobFileScreen", "ChangeScreen", "CheckpointsScreen", "Ask", "StepFindings"}
NAMES = sorted({kind.__name__ for kind in all_dialogs()} - ELSEWHERE)


@pytest.mark.parametrize(("name", "sizes"), at_sizes(NAMES, whole=("CaptionDialog", "PathPicker"), plain=("AskEnded",)))
async def test_dialog(name: str, sizes: Sizes, picture: Picture, folder: Path) -> None:
    (folder / "clips").mkdir()
    make = next(make for kind, make in one_of_each(folder).items() if kind.__name__ == name)
    app = Asking()
    async with app.run_test(size=SIZES[0]) as pilot:
        for size in sizes:  # opened at each size, as their users do
            await pilot.resize_terminal(*size)
            await app.push_screen(make())
            await picture(pilot, (size,))
            await app.pop_screen()
