"""What the dashboard can do to a run: change, save, sample, go back, compare. Over recorded runs at three sizes, and
once with a real daemon and trainer."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from textual.widgets import Input
from textual_image.widget import HalfcellImage

from daemon.wire.client import Client
from presets.runs.checkpoints import StoredCheckpoint
from tests.helpers.interface.harness import own_daemon, write_job
from tests.helpers.interface.runs import usual
from tests.wanlora_tui.commands.jobs.test_queue import edit, lines
from tests.wanlora_tui.screens.test_dashboard import SIZES, app_over, outside, settle, shown
from tests.wanlora_tui.test_app import interface, says, until
from wanlora_tui.screens.change import ChangeScreen
from wanlora_tui.screens.checkpoints import CheckpointsScreen
from wanlora_tui.screens.compare import CompareScreen
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screens.help import HelpScreen, of_screen
from wanlora_tui.widgets.redraw_throttle import Changed

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds

SETTINGS = {
    "training.lr": 1e-4,
    "training.steps": 300,
    "save.every": 50,
    "save.keep": 4,
    "sample.every": 0,
    "sample.shift": None,
    "multistage.high.lr": None,
    "multistage.low.lr": 2e-5,
}


@pytest.mark.parametrize("size", SIZES[:1])
async def test_the_form_sends_what_was_changed_and_nothing_wrong(size: tuple[int, int], tmp_path: Path):
    sent: list[object] = []
    async with app_over(usual(), tmp_path).run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.app.push_screen(ChangeScreen("orbit_v1", SETTINGS), sent.append)
        await settle(pilot)
        text = shown(pilot.app.screen)
        assert all(
            words in text
            for words in (
                "Change orbit_v1 while it trains",
                "1e-4",
                "2e-5",
                "Learning rate, high noise",
                "as above",
                "integer, 1 to 1 000 000 steps",
                "counts from the next step on",
            )
        ), text
        assert text.count("number, above 0, at most 10 ") == 3 and "…" not in text, text
        assert not list(outside(pilot.app.screen))
        await pilot.press(*"1e", "minus", "x", "enter")  # what stands in a field is selected: typing replaces it
        await settle(pilot)
        assert '✗ training.lr: Expected number, got "1e-x"' in shown(pilot.app.screen) and not sent
        await pilot.press("backspace", "5", "down", "3", "e", "minus", "5", "down", "down", "down", "2", "5")
        await settle(pilot)
        assert "● training.lr: 1e-4 -> 1e-5" in shown(
            pilot.app.screen
        ) and "● multistage.high.lr: left out -> 3e-5" in shown(pilot.app.screen)
        await pilot.press("enter")
        await settle(pilot)
    assert sent == [[("training.lr", "1e-5"), ("multistage.high.lr", "3e-5"), ("save.every", "25")]]


async def test_leaving_the_form_sends_nothing(tmp_path: Path):
    sent: list[object] = []
    async with app_over(usual(), tmp_path).run_test(size=(80, 24)) as pilot:
        for keys in (("5", "escape"), ("enter",)):
            await pilot.app.push_screen(ChangeScreen("orbit_v1", SETTINGS), sent.append)
            await pilot.press(*keys)
            await settle(pilot)
    assert sent == [None, None]


@pytest.mark.parametrize("size", [(80, 24), (100, 30)])
async def test_the_best_checkpoint_by_its_held_out_loss_is_told_with_the_reason(size: tuple[int, int], tmp_path: Path):
    found = [
        StoredCheckpoint(
            step=s, time=1.79e9, path=f"checkpoints/step_{s:09d}", size=150_000_000, losses={"high_noise": 0.1234},
            held_out=loss, verdict=verdict, against=100, why=why,
        )
        for s, loss, verdict, why in (
            (50, 0.61, "worse", "+0.05, 4.1 standard errors"),
            (100, 0.5612, "best", "later ones overfit (step 200: +0.1, 7.0 standard errors)"),
            (150, 0.57, "alike", "+0.01, 0.4 standard errors"),
            (200, None, "", ""),
        )
    ]  # fmt: skip
    async with app_over(usual(), tmp_path).run_test(size=size) as pilot:
        await pilot.app.push_screen(CheckpointsScreen("orbit_v1", Path("/runs/orbit_v1"), found))
        await settle(pilot)
        text = shown(pilot.app.screen)
        assert all(
            words in text
            for words in (
                "HELD OUT",
                "0.5612 best",
                "0.6100 worse",
                "0.5700 alike",
                "best: step 100; later ones",
                "SIZE",
            )
        ), text
        assert not list(outside(pilot.app.screen))
        await pilot.press("down")
        await settle(pilot)
        assert "against step 100: +0.01, 0.4 standard errors" in shown(pilot.app.screen)


@pytest.mark.parametrize("size", SIZES[:1])
async def test_checkpoints_newest_first_with_their_losses(size: tuple[int, int], tmp_path: Path):
    found = [
        StoredCheckpoint(
            step=s,
            time=1.79e9,
            path=f"checkpoints/step_{s:09d}",
            size=150_000_000,
            losses={"high_noise": 0.1234},
            previews=[f"samples/step_{s:09d}/00.mp4"],
        )
        for s in range(50, 1050, 50)
    ]
    chosen: list[int | None] = []
    async with app_over(usual(), tmp_path).run_test(size=size) as pilot:
        await pilot.app.push_screen(CheckpointsScreen("orbit_v1", Path("/runs/orbit_v1"), found), chosen.append)
        await settle(pilot)
        text = shown(pilot.app.screen)
        assert all(
            words in text for words in ("Enter goes back to one", "1000", "0.1234", "143 MiB", "step_000001000/00.mp4")
        ), text
        assert not list(outside(pilot.app.screen))
        await pilot.press("j", "down")
        await settle(pilot)
        assert "step_000000900/00.mp4" in shown(pilot.app.screen)
        await pilot.press("enter")
        await settle(pilot)
        await pilot.app.push_screen(CheckpointsScreen("orbit_v1", tmp_path, found), chosen.append)
        await pilot.press("escape")
        await settle(pilot)
    assert chosen == [900, None]


async def test_compare_has_a_help_of_its_own(tmp_path: Path):
    async with app_over(usual(), tmp_path).run_test(size=(80, 60)) as pilot:
        await settle(pilot)
        await pilot.press("c")
        await settle(pilot)
        await pilot.app.push_screen(HelpScreen(of_screen(pilot.app.screen.HELP_GROUP)))
        await settle(pilot)
        lines = [
            " ".join(line.split("│")[1].split())
            for line in shown(pilot.app.screen).splitlines()
            if line.count("│") == 2
        ]
        for keys, does in (
            ("Left h", "The same prompt at the step before."),
            ("Down j", "The next prompt."),
            ("y", "Copy the path of the film through the terminal (OSC 52)."),
            ("Esc c q", "Back to the dashboard."),
            ("Space", "Play, or pause, all films that are shown."),
            (",", "One frame back, in all films that are shown."),
        ):
            assert any(line.startswith(f"{keys} {does[:40]}") for line in lines), (keys, lines)
        assert sum(line.split()[:1] == ["G"] for line in lines) == 2  # once for lists, once for texts


class Arriving:
    """Pictures of another machine, as long as they are on their way and then."""

    came: Path | None = None

    def find(self, path: Path, version: object = None) -> Path | str:
        return self.came or "It is being fetched from box."


async def test_compare_on_another_machine_shows_the_picture_once_it_has_come(tmp_path: Path):
    tape = usual()
    app = app_over(tape, tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        pictures = Arriving()
        await app.push_screen(CompareScreen(app.screen.run, Path("/far/orbit_v1"), HalfcellImage, pictures=pictures))
        await settle(pilot)
        text = shown(pilot.app.screen)
        assert "being fetched" in text and "▀▀▀" not in text
        Image.new("RGB", (64, 64)).save(tmp_path / "came.png")
        pictures.came = tmp_path / "came.png"
        pilot.app.screen.post_message(Changed())
        await until(pilot, lambda: "▀▀▀" in shown(pilot.app.screen), "the picture")


async def test_a_change_a_pause_and_a_rollback_are_shown(tmp_path: Path):
    tape = usual()
    tape.attempt = 2
    tape.start(resumed_from=60)
    for step in range(61, 100):
        tape.step(step)
    tape.add("changed", field="training.lr", old=1e-4, new=5e-5, step=99)
    tape.phase(
        "paused",
        0,
        0,
        "the disk is full: 1.2 GiB are needed in /data/runs/orbit_v1, 0.3 GiB are free; trying again every 15 s",
    )
    async with app_over(tape, tmp_path).run_test(size=(160, 48)) as pilot:
        await settle(pilot)
        await pilot.press("l", "G")
        await settle(pilot)
        text = shown(pilot.app.screen)
        assert all(
            words in text
            for words in (
                "‖ paused the disk is full: 1.2 GiB are needed",
                "◐ trainer paused: it continues by itself",
                "~ training.lr changed",
                "► resumed",
            )
        ), text


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_the_footer_has_room_for_every_key(state: str):
    """Columns of the compact footer at 80: a key, a blank and a label each, and a blank between two."""
    from wanlora_tui.actions import all_actions

    only = {"running": {"stop", "change", "save", "sample"}, "stopped": {"resume", "checkpoints"}}
    hidden = set().union(*(names for s, names in only.items() if s != state))
    shown_keys = [
        (a.keys.split(",")[0].replace("escape", "esc").replace("question_mark", "?"), a.label)
        for a in all_actions()
        if a.id.partition(".")[0] in ("dashboard", "app") and a.show and a.id.partition(".")[2] not in hidden
    ]
    assert sum(len(key) + len(label) + 2 for key, label in shown_keys) <= 81


async def test_change_stop_edit_go_back_and_on_with_a_real_trainer(tmp_path: Path):
    with own_daemon() as folder:
        path = write_job(tmp_path, "orbit_v1", steps=100_000, pace_ms=40)
        run = tmp_path / "runs/orbit_v1"
        async with Client(folder) as client:
            record = await client.submit(path)
        async with interface(folder, job=record) as (app, pilot):

            async def wait(what: str, condition: Callable[[], object]) -> None:
                await until(pilot, condition, what)

            await wait("the dashboard", says(pilot, "trainer progressing"))
            await pilot.press("e")
            await wait("the form", lambda: isinstance(app.screen, ChangeScreen) and isinstance(app.focused, Input))
            await pilot.press("ctrl+u", *"5e-5", "enter")
            await wait("the change", lambda: lines(run, "changed"))
            assert lines(run, "changed")[0]["new"] == 5e-5
            await wait(
                "its line",
                lambda: any("training.lr" in line.text for line in app.screen.run.view.log if line.kind == "changed"),
            )
            await pilot.press("w")
            await wait("a checkpoint", lambda: any(c["step"] % 20 for c in lines(run, "checkpoint")))
            assert app.screen.check_action("sample_now", ()) is False, "the job has no prompts"
            await wait("a few checkpoints", lambda: len(lines(run, "checkpoint")) > 1)
            await pilot.press("s")
            await wait("the question", lambda: isinstance(app.screen, Confirm))
            await pilot.press("y")
            await wait("the stop", says(pilot, "■ stopped", "b Go back"))

            edit(path, training__loss="mae")
            await wait("the daemon to have seen the end", lambda: app.screen.check_action("resume_run", ()))
            await pilot.press("r")
            await wait("the diff", says(pilot, '✗ training.loss: "mse" -> "mae"', "breaks exactness"))
            await pilot.press("n")
            await wait("the dashboard", lambda: isinstance(app.screen, DashboardScreen))
            edit(path, training__loss="mse")
            await pilot.press("b")
            await wait("the checkpoints", lambda: isinstance(app.screen, CheckpointsScreen))
            await pilot.press("G", "enter")
            await wait("the question", says(pilot, "Go back to step 20 of orbit_v1"))
            await pilot.press("y")
            await wait("the second attempt", says(pilot, "attempt 2", "► running"))
            assert lines(run, "started")[1]["resumed_from"] == 20
