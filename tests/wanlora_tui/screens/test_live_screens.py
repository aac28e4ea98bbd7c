"""What the dashboard can do to a run: change, save, sample, go back, compare. Over recorded runs at three sizes, and
once with a real daemon and trainer."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from textual.widgets import Input, Static
from textual_image.widget import HalfcellImage

from daemon.wire.client import Client
from presets.runs.checkpoints import StoredCheckpoint
from tests.helpers.interface.harness import own_daemon, write_job
from tests.helpers.interface.runs import Tape, usual
from tests.wanlora_tui.commands.test_live import edit, lines
from tests.wanlora_tui.screens.test_dashboard import SIZES, app_over, outside, settle, shown
from tests.wanlora_tui.test_app import interface, says, until
from wanlora_tui.screens.change import ChangeScreen
from wanlora_tui.screens.checkpoints import CheckpointsScreen
from wanlora_tui.screens.compare import CompareScreen
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screens.help import HelpScreen

pytestmark = pytest.mark.process  # takes seconds

SETTINGS = {
    "training.lr": 1e-4,
    "training.steps": 300,
    "save.every": 50,
    "save.keep": 4,
    "sample.every": 0,
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
        assert text.count("number, above 0, at most 10") == 3 and "…" not in text, text
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


def pictured(tape: Tape, folder: Path) -> Path:
    """Two prompts at three steps, with all that the trainer draws of them."""
    for step in (0, 50, 100):
        tape.add(
            "sample",
            step=step,
            path=f"samples/step_{step:09d}/01.mp4",
            poster=f"samples/step_{step:09d}/01.png",
            prompt="dolly in on the well",
            seed=43,
        )
    run = folder / tape.name
    tape.write(run)
    for name in ("compare_00.png", "compare_01.png", *(f"step_{step:09d}/sheet.png" for step in (0, 50, 100))):
        Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(run / "samples" / name)
    return run


@pytest.mark.parametrize("size", SIZES[::2])
async def test_compare_goes_through_prompts_and_steps(size: tuple[int, int], tmp_path: Path):
    tape = usual()
    run = pictured(tape, tmp_path)
    async with app_over(tape, tmp_path).run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("c")
        await settle(pilot)

        async def at(*keys: str) -> list[str]:
            await pilot.press(*keys)
            await settle(pilot)
            text = shown(pilot.app.screen)
            assert "▀▀▀" in text and not list(outside(pilot.app.screen)), text
            return text.splitlines()

        top, *_ = text = await at()
        assert (
            "prompt 1 of 2, all steps   ◀ [all]  0  50  100 ▶" in top
            and "orbit 360 around the castle" in "\n".join(text)
            and "compare_00.png" in "".join(line.strip() for line in text)
        )
        assert "prompt 1 of 2, step 50   ◀ all  0  [50]  100 ▶" in (await at("right", "l"))[0]
        text = await at("down")
        assert (
            "prompt 2 of 2, step 50" in text[0]
            and "dolly in on the well" in "\n".join(text)
            and "step_000000050/01.png" in "".join(line.strip() for line in text)
        )
        text = await at("j")
        assert "all prompts, step 50   ◀ 0  [50]  100 ▶" in text[0] and "sheet.png" in "".join(
            line.strip() for line in text
        )
        assert "all prompts, step 0 " in (await at("left", "left", "left"))[0]
        assert "prompt 1 of 2, all steps" in (await at("k", "up", "h"))[0]
        (run / "samples/compare_00.png").unlink()
        await pilot.press("up")
        await settle(pilot)
        assert "compare_00" not in shown(pilot.app.screen)
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(pilot.app.screen, DashboardScreen)


async def test_compare_has_a_help_of_its_own(tmp_path: Path):
    tape = usual()
    pictured(tape, tmp_path)
    async with app_over(tape, tmp_path).run_test(size=(80, 40)) as pilot:
        await settle(pilot)
        await pilot.press("c")
        await settle(pilot)
        await pilot.app.push_screen(HelpScreen(pilot.app.screen.HELP_GROUP))
        await settle(pilot)
        lines = [
            " ".join(line.split("│")[1].split())
            for line in shown(pilot.app.screen).splitlines()
            if line.count("│") == 2
        ]
        for keys, does in (
            ("Left h", "The same prompt at the step before."),
            ("Down j", "The next prompt."),
            ("y", "Copy the path of the picture through the terminal (OSC 52)."),
            ("Esc c q", "Back to the dashboard."),
        ):
            assert any(line.startswith(f"{keys} {does[:40]}") for line in lines), (keys, lines)
        assert sum(line.split()[:1] == ["G"] for line in lines) == 2  # once for lists, once for texts


async def test_compare_on_another_machine_says_how_to_fetch_the_picture(tmp_path: Path):
    tape = usual()
    app = app_over(tape, tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await app.push_screen(CompareScreen(app.screen.run, Path("/far/orbit_v1"), HalfcellImage, host="me@box"))
        await settle(pilot)
        assert "scp me@box:/far/orbit_v1/samples/compare_00.png ." in shown(pilot.app.screen) and "▀▀▀" not in shown(
            pilot.app.screen
        )


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
                "│ resumed at step 60",
            )
        ), text


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_the_footer_has_room_for_every_key(state: str):
    """Columns of the compact footer at 80: a key, a blank and a label each, and a blank between two."""
    from wanlora_tui.actions import all_actions

    only = {"running": {"stop", "change", "save", "sample"}, "stopped": {"resume", "checkpoints"}}
    hidden = set().union(*(names for s, names in only.items() if s != state))
    shown_keys = [
        (a.keys.split(",")[0].replace("escape", "esc"), a.label)
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
            await pilot.press("n")
            await wait("the refusal", says(pilot, "has no sample prompts"))
            await wait("a few checkpoints", lambda: len(lines(run, "checkpoint")) > 1)
            await pilot.press("s")
            await wait("the question", lambda: isinstance(app.screen, Confirm))
            await pilot.press("y")
            await wait("the stop", says(pilot, "■ stopped", "b Go back"))

            edit(path, training__loss="mae")
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


def test_a_prompt_whose_previews_fail_does_not_move_the_others():
    samples = [
        SimpleNamespace(step=10, path=f"samples/a/{i:02d}.mp4", poster=f"samples/a/{i:02d}.png", prompt=f"prompt {i}")
        for i in (0, 2)
    ]
    screen = CompareScreen(SimpleNamespace(view=SimpleNamespace(samples=samples)), Path("/run"), Static, host="box")  # type: ignore[arg-type]
    assert screen.prompts == ["prompt 0", "", "prompt 2"]
    assert {at: str(path.relative_to("/run")) for at, path in screen.pictures.items()} == {
        (0, 10): "samples/a/00.png",
        (2, 10): "samples/a/02.png",
        (0, -1): "samples/compare_00.png",
        (2, -1): "samples/compare_02.png",
        (3, 10): "samples/a/sheet.png",
    }
