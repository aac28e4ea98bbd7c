"""Names that are not UTF-8 in the interface: shown, and never taken into a job."""

import os
from pathlib import Path

from textual.app import App
from textual.widgets import Static

from wanlora_tui.output.typed_paths import complete_path
from wanlora_tui.widgets.folder_picker import PathPicker


def test_a_path_is_not_completed_to_one(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    assert complete_path(f"{tmp_path}/ca", tmp_path, None) is None
    (tmp_path / "cats").mkdir()
    assert complete_path(f"{tmp_path}/ca", tmp_path, None) == f"{tmp_path}/cats/"


async def test_the_picker_says_why_it_cannot_be_taken(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    app: App[None] = App()
    async with app.run_test() as pilot:
        picker = PathPicker(tmp_path, title="Clips")
        await app.push_screen(picker)
        picker.choose(odd)
        await pilot.pause()
        assert app.screen is picker and r"caf\xe9: the path is not UTF-8" in str(
            picker.query_one("#picker-problem", Static).content
        )
        picker.choose(tmp_path)
        await pilot.pause()
        assert app.screen is not picker
