"""The tree to pick a folder from: how many clips each folder holds, and a filter."""

from pathlib import Path
from typing import Any

from textual import events
from textual.widgets import Input

from tests.helpers.interface.wizard_pilot import screen_text, type_text, until
from wanlora_tui.widgets.folder_picker import PathPicker, count_text
from wanlora_tui.widgets.key_order import KeysInOrder


class PickerApp(KeysInOrder):
    def __init__(self, start: Path, suffixes: frozenset[str] | None = None) -> None:
        super().__init__()
        self.start, self.suffixes, self.picked = start, suffixes, "nothing yet"

    def on_mount(self) -> None:
        self.push_screen(PathPicker(self.start, title="A folder of clips", suffixes=self.suffixes), self._took)

    def _took(self, path: str | None) -> None:
        self.picked = path  # type: ignore[assignment]


def folders(base: Path, **clips: int) -> Path:
    for name, number in clips.items():
        (base / name).mkdir()
        (base / name / "readme.md").touch()
        (base / name / ".hidden.mp4").touch()
        for i in range(number):
            (base / name / f"{i}.MP4").touch()
    return base


async def test_folders_say_how_many_clips_they_hold(tmp_path: Path) -> None:
    app = PickerApp(folders(tmp_path, orbit=12, pan=1, empty=0))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "12 clips" in screen_text(app) and "1 clip" in screen_text(app), "the counts")
        (line,) = [row for row in screen_text(app).splitlines() if "empty" in row]
        assert "clip" not in line


async def test_in_a_small_terminal_the_folders_come_before_the_keys(tmp_path: Path) -> None:
    base = tmp_path / "clips"
    base.mkdir()
    app = PickerApp(folders(base, orbit=12, pan=1, tilt=3))
    async with app.run_test(size=(40, 12)) as pilot:
        await until(pilot, lambda: "3 clips" in screen_text(app), "the folders")
        assert all(f"{name} " in screen_text(app) for name in ("orbit", "pan", "tilt"))
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "backspace goes up" in screen_text(app), "the keys, where there is room")


async def test_typing_after_a_slash_leaves_only_what_has_it_in_its_name(tmp_path: Path) -> None:
    app = PickerApp(folders(tmp_path, orbit_left=1, orbit_right=1, pan=1))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "pan" in screen_text(app), "the tree")
        await pilot.press("slash")
        await type_text(pilot, "RIGHT")
        await until(pilot, lambda: "orbit_left" not in screen_text(app), "the filter")
        assert "orbit_right" in screen_text(app) and "pan" not in screen_text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert not isinstance(app.focused, Input)
        await pilot.press("enter")
        await until(pilot, lambda: app.picked != "nothing yet", "the pick")
        assert app.picked == str(tmp_path / "orbit_right")


async def test_what_is_filtered_and_taken_at_once_is_what_the_filter_has_found(tmp_path: Path) -> None:
    app = PickerApp(folders(tmp_path, orbit_left=1, orbit_right=1, pan=1))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "pan" in screen_text(app), "the tree")
        for key in ("slash", *"right", "enter", "enter"):
            app.post_message(events.Key(key, {"slash": "/", "enter": "\r"}.get(key, key)))
        await until(pilot, lambda: app.picked != "nothing yet", "the pick")
        assert app.picked == str(tmp_path / "orbit_right")


async def test_a_folder_that_the_filter_has_found_opens(tmp_path: Path) -> None:
    app = PickerApp(folders(tmp_path, orbit=1, pan=1))
    (tmp_path / "orbit" / "inside").mkdir()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "pan" in screen_text(app), "the tree")
        await pilot.press("slash")
        await type_text(pilot, "orb")
        await until(pilot, lambda: "pan" not in screen_text(app), "the filter")
        await pilot.press("enter", "right")
        await until(pilot, lambda: "inside" in screen_text(app), "what lies in it")


def test_counts(tmp_path: Path, monkeypatch: Any) -> None:
    folders(tmp_path, some=3)
    assert count_text(tmp_path / "some", {".mp4"}, "clip") == "3 clips"
    assert count_text(tmp_path / "gone", {".mp4"}, "clip") == ""
    monkeypatch.setattr("wanlora_tui.widgets.folder_picker.MOST_COUNTED", 3)
    assert count_text(tmp_path / "some", {".mp4"}, "clip").endswith("or more")


async def test_what_is_wrong_with_one_path_is_not_said_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "job.toml").touch()
    app = PickerApp(tmp_path, frozenset({".toml"}))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "job.toml" in screen_text(app), "the tree")
        await pilot.press("enter")
        await until(pilot, lambda: "This is a folder" in screen_text(app), "the problem")
        await pilot.press("down")
        await until(pilot, lambda: "This is a folder" not in screen_text(app), "another path")
        await pilot.press("enter")
        await until(pilot, lambda: app.picked == str(tmp_path / "job.toml"), "the pick")


async def test_a_path_that_is_typed_into_the_filter_is_taken_as_one(tmp_path: Path) -> None:
    folders(tmp_path, here=0, pan=1)
    app = PickerApp(folders(tmp_path / "here", orbit=1))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "orbit" in screen_text(app), "the tree")
        for key in str(tmp_path / "pan"):
            app.post_message(events.Key({"/": "slash"}.get(key, key), key))
        app.post_message(events.Key("enter", "\r"))
        await until(pilot, lambda: app.picked != "nothing yet", "the pick")
        assert app.picked == str(tmp_path / "pan")
