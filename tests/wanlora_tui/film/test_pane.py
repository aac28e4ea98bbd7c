"""What a low pane says of its film's path, and the room that its picture has."""

from pathlib import Path

import pytest
from rich.text import Text
from textual.app import App, ComposeResult

from presets.runs.run_view import RunView, apply_event
from tests.helpers.interface.films import filmed
from tests.helpers.interface.wizard_pilot import until
from wanlora_tui.film.pane import FilmPane, _end_of
from wanlora_tui.film.shots import Shots
from wanlora_tui.terminal.pictures import picture_class


def test_as_many_folders_of_a_path_as_fit_and_always_the_name():
    path = "box:/home/you/runs/orbit_v1/samples/step_000000020/00.mp4"
    assert _end_of(path, 40) == "…/orbit_v1/samples/step_000000020/00.mp4"
    assert _end_of(path, 39) == "…/samples/step_000000020/00.mp4"
    assert _end_of(path, 30) == "…/step_000000020/00.mp4"
    assert _end_of(path, 4) == "…/00.mp4"


class Here:
    def find(self, path: Path, version: object = None) -> Path:
        return path


class Paned(App[None]):
    """A picture that lines below it take rows from."""

    def compose(self) -> ComposeResult:
        yield FilmPane(picture_class("Sixel"), Here(), path=True)

    def on_film_pane_resized(self) -> None:
        self.query_one(FilmPane).draw(0.0)


async def test_a_picture_has_no_more_rows_than_what_is_said_below_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path takes one line, then more: nothing else has another size."""
    monkeypatch.chdir(tmp_path)
    view, app = RunView(), Paned()
    for event in filmed(tmp_path / "orbit_v1", prompts=1, steps=(0,), until=1).events:
        apply_event(view, event)
    async with app.run_test(size=(46, 16)) as pilot:
        pane = app.query_one(FilmPane)

        def rows() -> tuple[int, int]:
            return pane.query_one(".film-image").size.height, pane.query_one(".film-frame").size.height

        for run_dir, room in ((Path("orbit_v1"), 15), (tmp_path / "orbit_v1", 13)):
            shots = Shots(view, run_dir)
            assert shots.newest is not None
            pane.show(shots.get(*shots.newest), Text())
            pane._find_poster()
            pane.draw(0.0)
            await until(pilot, lambda most=room: 0 < rows()[0] <= rows()[1] <= most, f"a picture in {room} rows")
