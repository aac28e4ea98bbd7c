"""Previews on the screens: played in their place, full screen, compared, all on a sheet. Real films, recorded runs."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from textual.actions import parse
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Static
from textual_image.widget import HalfcellImage, TGPImage

from tests.helpers.interface.films import FRAMES, add_samples, filmed, scene, write_films
from tests.helpers.interface.wizard_pilot import screen_text, until
from tests.helpers.waiting import PATIENCE
from wanlora_tui.film.pane import FilmPane
from wanlora_tui.film.player import PLAYING
from wanlora_tui.film.position_bar import PositionBar
from wanlora_tui.film.poster import Poster
from wanlora_tui.film.sheet_view import SheetView
from wanlora_tui.film.shots import Column
from wanlora_tui.film.view import FilmView
from wanlora_tui.screens.compare import CompareScreen, PictureScreen
from wanlora_tui.screens.contact_sheet import ContactSheet
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screenshot import RecordedApp, load_run
from wanlora_tui.widgets.redraw_throttle import Changed


def app_over(run_dir: Path, image: type = HalfcellImage) -> RecordedApp:
    return RecordedApp(load_run(run_dir / "events.jsonl"), image)


def bar_at(pane: FilmPane) -> int | None:
    """The frame that a pane shows, by where its white bar is; None while it shows none."""
    frame = pane.query_one(FilmView).frame
    if frame is None:
        return None
    row = frame[len(frame) // 2].astype(int).min(axis=-1)
    return int(np.argmax(row > 200) / len(row) * FRAMES + 0.5)


def panes(app: App[None]) -> list[FilmPane]:
    return [pane for pane in app.screen.query(FilmPane) if pane.display]


def offered(app: App[None]) -> set[str]:
    """The names of the actions that a key would take now."""
    return {parse(bound.binding.action)[1] for bound in app.screen.active_bindings.values() if bound.enabled}


async def begin(pilot: Pilot[None], key: str, screen: type) -> None:
    await until(pilot, lambda: isinstance(pilot.app.screen, DashboardScreen), "the dashboard")
    await pilot.press(key)
    await until(pilot, lambda: isinstance(pilot.app.screen, screen), screen.__name__)


@pytest.mark.parametrize("size", [(80, 24), pytest.param((160, 48), marks=pytest.mark.thorough)])
async def test_the_preview_plays_in_its_place(size: tuple[int, int], tmp_path: Path):
    filmed(tmp_path / "orbit_v1")
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")
        await pilot.press("p")
        poster = app.screen.query_one(Poster)
        [pane] = panes(app)
        await until(pilot, lambda: bar_at(pane) == FRAMES // 2, "the poster, which is the middle frame")
        assert "step 100, prompt 2 of 2" in screen_text(app) and "dolly in on the well" in screen_text(app)
        assert "space plays" in screen_text(app) and f"/{FRAMES}" not in screen_text(app)
        before = pane.region
        assert "esc Jobs" in screen_text(app)
        await pilot.press("space")
        await until(pilot, lambda: "esc Poster" in screen_text(app), "the way back in the footer")
        seen: set[int | None] = set()
        await until(pilot, lambda: seen.add(bar_at(pane)) or len(seen) > 2, "frames")  # type: ignore[func-returns-value]
        assert poster.player.playhead.playing and "►" in screen_text(app)
        assert pane.region == before, "nothing jumps when it begins"
        await pilot.press("space", "home")
        await until(pilot, lambda: bar_at(pane) == 0, "the first frame")
        await pilot.press("full_stop", "full_stop")
        await until(pilot, lambda: bar_at(pane) == 2, "the third")
        assert f" 3/{FRAMES}" in screen_text(app)
        await pilot.press("end", "comma")
        await until(pilot, lambda: bar_at(pane) == FRAMES - 2, "the last but one")
        await pilot.press("left")
        await until(pilot, lambda: "step 50, prompt 2 of 2" in screen_text(app), "the step before")
        await pilot.press("up")
        await until(pilot, lambda: "step 50, prompt 1 of 2" in screen_text(app), "the prompt before")
        await until(pilot, lambda: bar_at(pane) == FRAMES - 2, "the same frame of another film")
        await pilot.press("escape")
        await until(pilot, lambda: bar_at(pane) == FRAMES // 2, "the poster")
        assert "step 100, prompt 2 of 2" in screen_text(app) and isinstance(app.screen, DashboardScreen)
        await until(pilot, lambda: "esc Jobs" in screen_text(app), "what Esc does now, in the footer")
        await pilot.press("left")
        await until(pilot, lambda: "esc Poster" in screen_text(app), "the way back to the newest one")
        await pilot.press("right")
        await until(pilot, lambda: "esc Jobs" in screen_text(app), "the newest one")
        await pilot.press("z")
        await until(pilot, lambda: isinstance(app.screen, PictureScreen), "full screen")
        await until(pilot, lambda: [bar_at(p) for p in panes(app)] == [FRAMES // 2], "the picture")
        assert "prompt 2 of 2, step 100" in screen_text(app) and "seed 43" in screen_text(app)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")


async def test_steps_side_by_side_are_scrubbed_together(tmp_path: Path):
    filmed(tmp_path / "orbit_v1")
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=(120, 40)) as pilot:
        await begin(pilot, "c", CompareScreen)

        async def frames(wanted: list[int]) -> None:
            await until(pilot, lambda: [bar_at(p) for p in panes(app)] == wanted, f"frames {wanted}")

        await frames([FRAMES // 2] * 3)
        text = screen_text(app)
        assert all(f"step {s}  seed 43" in text for s in (0, 50, 100)) and "▸ step 100" in text
        assert "prompt 2 of 2, step 100   ◀ 0  50  [100] ▶" in text and "dolly in on the well" in text
        await pilot.press("home", "full_stop", "full_stop", "full_stop")
        await frames([3, 3, 3])
        await pilot.press("up")  # the other prompt, at the same frame
        await frames([3, 3, 3])
        assert "prompt 1 of 2" in screen_text(app) and "seed 42" in screen_text(app)
        shown = panes(app)[0].query_one(FilmView).frame
        assert shown is not None and shown[0, -1].argmax() == 0, "the first prompt is red"
        await pilot.press("minus", "h")
        await frames([3, 3])
        assert "▸ step 50" in screen_text(app)
        await pilot.press("p", "l", "i")  # step 50 stays, step 100 beside it, and what they started from
        await frames([0, 3, 3])
        text = screen_text(app)
        assert "⊢ step 50" in text and "▸ step 100" in text and "the control image" in text
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, PictureScreen), "full screen")
        await frames([3])
        await pilot.press("left", "full_stop")
        await frames([4])
        await pilot.press("escape")
        await until(pilot, lambda: type(app.screen) is CompareScreen, "the comparison")
        await frames([0, 4, 4])
        await pilot.press("y")
        await until(pilot, lambda: "step_000000050/00.mp4" in app.clipboard, "the path")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")
        assert "step 50, prompt 1 of 2" in str(app.screen.query_one(Poster).border_title)
        await pilot.press("o", "y")
        await until(pilot, lambda: app.clipboard == str(tmp_path / "orbit_v1"), "the run folder, from the plot")
        await pilot.press("p", "y")
        await until(pilot, lambda: app.clipboard.endswith("step_000000050/00.mp4"), "the preview, from its pane")


async def test_mouse(tmp_path: Path):
    filmed(tmp_path / "orbit_v1")
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=(120, 40)) as pilot:
        await begin(pilot, "c", CompareScreen)
        await until(pilot, lambda: len(panes(app)) == 3, "the panes")
        await pilot.press("space", "space")
        bar = app.screen.query_one(PositionBar)
        await until(pilot, lambda: bar.display and app.screen.player.playhead.frames == FRAMES, "the bar")
        await until(pilot, lambda: bar.region.width > 100, "its place")
        begin_at, columns = bar._line
        await pilot.click(bar, offset=(begin_at + columns // 2, 0))
        await until(pilot, lambda: app.screen.player.playhead.frame in (5, 6), "the middle")
        at = app.screen.player.playhead.frame
        bar.on_mouse_scroll_down(SimpleNamespace(stop=lambda: None))  # type: ignore[arg-type]
        await until(pilot, lambda: app.screen.player.playhead.frame == at + 1, "a step of the wheel")
        await pilot.click(panes(app)[0].query_one(FilmView))
        await until(pilot, lambda: isinstance(app.screen, PictureScreen), "the one that was clicked on")
        assert "step 0" in screen_text(app)


@pytest.mark.parametrize("size", [(80, 24), pytest.param((160, 48), marks=pytest.mark.thorough), (40, 10)])
async def test_a_sheet_of_all_prompts_and_steps(size: tuple[int, int], tmp_path: Path):
    filmed(tmp_path / "orbit_v1", prompts=4, steps=(0, 20, 40, 60, 80, 100))
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=size) as pilot:
        await begin(pilot, "t", ContactSheet)
        view = app.screen.query_one(SheetView)
        await until(pilot, lambda: view._posters and all(at in view._frames for at in view._in_sight), "the posters")
        await until(pilot, lambda: "▸ step 100" in screen_text(app), "the last of them in sight")
        assert view.cursor == (3, 5) and "▀▀" in screen_text(app)
        assert "4 prompts, 6 steps" in screen_text(app) and "4  dolly in on the well" in screen_text(app)
        await pilot.press("up", "left", "left")
        await until(pilot, lambda: view.cursor == (2, 3) and "▸ step 60" in screen_text(app), "the cursor, in sight")
        await pilot.press("home", "full_stop", "y")
        assert app.clipboard.endswith("step_000000060/02.mp4")
        frame = np.asarray(scene(2, 60, 1))
        await until(pilot, lambda: (2, 3) in view._films and view._films[2, 3].whole, "the film")
        await until(pilot, lambda: abs(int(view._frames[2, 3].mean()) - int(frame.mean())) < 25, "its second frame")
        assert app.screen.player.playhead.frame == 1
        width = view._cell[0]
        await pilot.press("plus")
        await until(pilot, lambda: view._cell[0] > width and "▸ step 60" in screen_text(app), "larger pictures")
        assert app.screen.player.playhead.frame == 1, "the position stays while they are decoded anew"
        await pilot.press("minus", "minus", "enter")
        await until(pilot, lambda: isinstance(app.screen, PictureScreen), "full screen")
        assert "prompt 3 of 4, step 60" in screen_text(app)
        await pilot.press("right", "escape")
        await until(pilot, lambda: isinstance(app.screen, ContactSheet) and view.cursor == (2, 4), "the sheet")
        await pilot.press("c")
        await until(pilot, lambda: type(app.screen) is CompareScreen, "the comparison")
        await pilot.press("escape", "escape")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")


async def test_the_cursor_of_a_sheet_stays_in_sight_in_a_terminal_of_another_size(tmp_path: Path):
    filmed(tmp_path / "orbit_v1", prompts=4, steps=(0, 20, 40, 60, 80, 100))
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=(160, 48)) as pilot:
        await begin(pilot, "t", ContactSheet)
        await until(pilot, lambda: "▸ step 100" in screen_text(app), "the newest")
        for size in ((50, 14), (100, 30)):
            await pilot.resize_terminal(*size)
            await until(pilot, lambda: "▸ step 100" in screen_text(app), "the same, in sight")


async def test_a_branch_that_was_left_is_compared_with_what_is_kept(tmp_path: Path):
    run = tmp_path / "orbit_v1"
    tape = filmed(run, prompts=1, steps=(0, 50, 100))
    write_films(run, tape, folder="abandoned/attempt_1", steps={100})
    tape.attempt = 2
    tape.add("log", level="info", text="going back", rollback=50, folder="abandoned/attempt_1")
    started = dict(tape.events[0].data) | {"resumed_from": 50, "rollback": True}
    tape.add("started", **started)
    tape.step(51)
    add_samples(tape, 100, 1)
    tape.write(run)
    app = app_over(run)
    async with app.run_test(size=(120, 30)) as pilot:
        await begin(pilot, "c", CompareScreen)
        await pilot.press("right")
        await until(pilot, lambda: "▸ step 100 ~1 abandoned" in screen_text(app), "what was left")
        text = screen_text(app)
        assert "attempt 1 made it, before the run went back to step 50" in text and "[100~1]" in text
        assert app.screen._at == (0, Column(100, 1))
        await pilot.press("home", "full_stop")
        await until(pilot, lambda: {bar_at(p) for p in panes(app)} == {1}, "both at one frame")


async def test_what_cannot_be_shown_says_why_and_the_poster_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wanlora_tui.film.decoding.YOUNG_SECONDS", 10 * PATIENCE)
    run = tmp_path / "orbit_v1"
    filmed(run, prompts=1, steps=(0, 50, 100))
    (run / "samples/step_000000000/00.mp4").unlink()
    film = run / "samples/step_000000100/00.mp4"
    film.write_bytes(film.read_bytes()[:-40])
    (run / "samples/step_000000050/00.png").unlink()
    app = app_over(run)
    async with app.run_test(size=(160, 40)) as pilot:
        await begin(pilot, "c", CompareScreen)

        def said(i: int) -> str:
            return str(panes(app)[i].query_one(".film-words", Static).render())

        await until(pilot, lambda: "The poster cannot be shown (No such file" in said(1), "the lost poster")
        await pilot.press("space")
        await until(pilot, lambda: said(0) == "The film cannot be shown: it is not there.", "the lost film")
        await until(pilot, lambda: "it is still being written (" in said(2), "the one that is not whole")
        assert panes(app)[2].query_one(FilmView).frame is not None
        await until(pilot, lambda: not said(1), "the film, for which no poster is needed")


async def test_behind_a_film_that_plays_a_missing_one_shows_no_playing_bar(tmp_path: Path):
    filmed(tmp_path / "orbit_v1", prompts=1, steps=(0, 50), until=51)
    (tmp_path / "orbit_v1/samples/step_000000000/00.mp4").unlink()
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=(80, 24)) as pilot:
        await begin(pilot, "z", PictureScreen)
        await pilot.press("space")
        await until(pilot, lambda: "►" in screen_text(app) and "/0.8 s" in screen_text(app), "the film of step 50")
        await pilot.press("left")
        await until(pilot, lambda: "no film to play" in screen_text(app), "that of step 0, which is not there")
        assert "►" not in screen_text(app) and "/0.8 s" not in screen_text(app)
        assert PLAYING.isdisjoint(offered(app))
        await until(pilot, lambda: "space Play" not in screen_text(app), "a footer without what cannot play")
        await pilot.press("right")
        await until(pilot, lambda: "►" in screen_text(app), "the film of step 50 again")
        assert offered(app) >= PLAYING
        await until(pilot, lambda: "space Play" in screen_text(app), "the key that plays")


async def test_it_stands_still_while_nobody_looks(tmp_path: Path):
    filmed(tmp_path / "orbit_v1", prompts=1, steps=(0,), until=1)
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=(80, 24)) as pilot:
        await begin(pilot, "z", PictureScreen)
        await pilot.press("space")
        player = app.screen.player
        await until(pilot, lambda: player.playhead.duration and player.playhead._since is not None, "playing")
        app.app_focus = False
        await until(pilot, lambda: player.playhead._since is None, "the clock to stand")
        assert player.playhead.playing
        app.app_focus = True
        await until(pilot, lambda: player.playhead._since is not None, "the clock to run on")
        await pilot.press("question_mark", "f1")
        await app.push_screen(CompareScreen(app.screen._run, tmp_path, HalfcellImage, pictures=app.screen._pictures))
        await until(pilot, lambda: player.playhead._since is None, "the clock to stand under another screen")


async def test_a_slow_terminal_gets_fewer_frames_and_not_a_slower_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wanlora_tui.screens.compare.SECONDS", PATIENCE)  # a look for new files draws as well
    filmed(tmp_path / "orbit_v1", prompts=1, steps=(0,), until=1)
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=(80, 24)) as pilot:
        await begin(pilot, "z", PictureScreen)
        [pane], player = panes(app), app.screen.player
        await pilot.press("home")
        await until(pilot, lambda: bar_at(pane) == 0 and all(reel.whole for reel in pane.reels), "the first frame")
        app._driver.is_behind = True  # type: ignore[union-attr]
        await pilot.press("space")
        drawn, passed = pane.query_one(FilmView).frame, set()
        await until(pilot, lambda: passed.add(player.playhead.frame) or len(passed) > 2, "time")  # type: ignore[func-returns-value]
        assert pane.query_one(FilmView).frame is drawn
        app._driver.is_behind = False  # type: ignore[union-attr]
        await until(pilot, lambda: pane.query_one(FilmView).frame is not drawn, "another frame")


async def test_the_poster_is_looked_for_again_and_opens_by_a_click(tmp_path: Path):
    filmed(tmp_path / "orbit_v1", prompts=1, steps=(0,), until=1)
    poster = tmp_path / "orbit_v1/samples/step_000000000/00.png"
    poster.rename(poster.with_suffix(".later"))
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=(160, 48)) as pilot:
        await until(pilot, lambda: "The poster cannot be shown (No such file" in screen_text(app), "words")
        poster.with_suffix(".later").rename(poster)
        await until(pilot, lambda: bar_at(panes(app)[0]) == FRAMES // 2, "the poster")
        assert "cannot be shown" not in screen_text(app)
        film = poster.with_suffix(".mp4").rename(poster.with_suffix(".later"))
        await pilot.press("space")
        await until(pilot, lambda: "The film cannot be shown: it is not there." in screen_text(app), "words")
        bar = app.screen.query_one(PositionBar)
        await until(pilot, lambda: bar.render_line(0).text.strip() == "no film to play", "a bar that does not play")
        assert PLAYING.isdisjoint(offered(app)), "of the preview that has the focus and of the dashboard"
        film.rename(poster.with_suffix(".mp4"))
        await until(pilot, lambda: "cannot be shown" not in screen_text(app), "the film")
        await until(pilot, lambda: bar.render_line(0).text.startswith("►"), "a bar that plays")
        assert offered(app) >= PLAYING
        await pilot.click(panes(app)[0].query_one(FilmView))
        await until(pilot, lambda: isinstance(app.screen, PictureScreen), "full screen")


async def test_without_colour_brightness_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    filmed(tmp_path / "orbit_v1", prompts=1, steps=(0,), until=1)
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=(80, 24)) as pilot:
        await begin(pilot, "z", PictureScreen)
        await until(pilot, lambda: "@@@" in screen_text(app), "the white bar")
        assert "▀" not in screen_text(app)


async def test_a_terminal_with_graphics_draws_the_poster_and_plays_in_cells(tmp_path: Path):
    filmed(tmp_path / "orbit_v1", prompts=1, steps=(0,), until=1)
    app = app_over(tmp_path / "orbit_v1", TGPImage)
    async with app.run_test(size=(80, 24)) as pilot:
        await begin(pilot, "z", PictureScreen)
        [pane] = panes(app)
        await until(pilot, lambda: pane.query_one(TGPImage).display and pane.query_one(TGPImage).image, "the poster")
        assert "▀" not in screen_text(app)
        await pilot.press("space", "home")
        await until(pilot, lambda: bar_at(pane) == 0 and "▀" in screen_text(app), "the film")
        assert not pane.query_one(TGPImage).display


@pytest.mark.parametrize(("size", "rows"), [((40, 12), 4), ((130, 36), 6)])
async def test_the_picture_gets_most_of_its_pane_on_small_terminals(size: tuple[int, int], rows: int, tmp_path: Path):
    filmed(tmp_path / "orbit_v1", steps=(0,), until=1)
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")
        await pilot.press("p")
        await until(pilot, lambda: "▀▀" in screen_text(app) and "c compare" in screen_text(app), "the preview")
        assert sum("▀▀▀▀" in line for line in screen_text(app).splitlines()) >= rows, screen_text(app)


async def test_nothing_yet_and_a_very_small_terminal(tmp_path: Path):
    filmed(tmp_path / "orbit_v1", prompts=2, steps=(0, 50))
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=(40, 10)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")
        await pilot.press("t")  # where the plot has the focus
        await until(pilot, lambda: isinstance(app.screen, ContactSheet), "the sheet")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")
        await pilot.press("p", "space", "space", "c", "space", "plus", "plus", "i")
        await pilot.resize_terminal(20, 5)
        await pilot.resize_terminal(100, 30)
        await until(pilot, lambda: "prompt 2 of 2, step 50" in screen_text(app), "the comparison")
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, ContactSheet), "the sheet")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")
        gone = CompareScreen(app.screen.run, tmp_path, HalfcellImage, pictures=FakePictures())
        await app.push_screen(gone)
        gone.post_message(Changed())  # looked at while it is being taken down
        await gone.dismiss(None)
        gone._show()
        gone.player.aim()
    empty = SimpleNamespace(view=load_run(tmp_path / "orbit_v1/events.jsonl").view)
    empty.view.samples = []
    for screen in (CompareScreen, PictureScreen, ContactSheet):
        app = app_over(tmp_path / "orbit_v1")
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda app=app: isinstance(app.screen, DashboardScreen), "the dashboard")
            await app.push_screen(screen(empty, tmp_path, HalfcellImage, pictures=FakePictures()))
            await pilot.press("space", "left", "down", "comma", "home", "end", "plus", "p")
            await until(pilot, lambda app=app: "No preview yet" in screen_text(app), "words")


class FakePictures:
    def find(self, path: Path, version: object = None) -> Path | str:
        return "It is being fetched from box: 3.0 MiB of 8.0 MiB."


async def test_films_of_another_machine_say_how_they_come(tmp_path: Path):
    filmed(tmp_path / "orbit_v1", prompts=1, steps=(0,), until=1)
    run = load_run(tmp_path / "orbit_v1/events.jsonl")
    app = app_over(tmp_path / "orbit_v1")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")
        await app.push_screen(PictureScreen(run, tmp_path, HalfcellImage, pictures=FakePictures()))
        await pilot.press("space")
        words = "The film: it is being fetched from box: 3.0 MiB of 8.0"
        await until(pilot, lambda: words in screen_text(app), "words")
