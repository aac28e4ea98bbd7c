"""The line under the wizard's steps that says what the job takes."""

import shutil
import time
from pathlib import Path

import pytest

from tests.helpers.facts import gpu, machine
from tests.helpers.interface.wizard_pilot import at_step, make_clips, screen_of, static, until, wizard
from tests.wanlora_tui.screens.wizard.test_wizard import resumed
from wanlora_tui.draft import forecast
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.screens.frame import reckoning
from wanlora_tui.screens.wizard import reading, review
from wanlora_tui.screens.wizard.pane import Edited

pytestmark = pytest.mark.process  # takes seconds


@pytest.mark.parametrize(("step", "where"), [("settings", "#forecast-line"), ("review", "#forecast")])
async def test_when_the_job_would_be_done_follows_the_clock(
    step: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reckoning, "CLOCK", 0.05)
    monkeypatch.setattr(review, "CLOCK", 0.05)
    monkeypatch.setattr(reading, "read_machine", lambda folder: machine(gpu(24), ram_gib=96))
    begin = now = time.time()

    class Clock:
        time = staticmethod(lambda: now)

    monkeypatch.setattr(forecast, "time", Clock)
    draft = Draft(step=step, kind="motion", folders=[str(make_clips(tmp_path / "clips", 2))])
    DraftStore(tmp_path / "draft.json").save(draft)
    async with wizard(tmp_path / "draft.json") as pilot:
        await resumed(pilot, step)
        await until(pilot, lambda: "done at" in static(pilot, where), "what the job takes")
        await until(pilot, lambda: not screen_of(pilot).looking, "the end of all looks")
        before = static(pilot, where)
        now = begin + 7777
        await until(pilot, lambda: static(pilot, where) != before, "another time")
        assert static(pilot, where).count("done at") == 1


@pytest.mark.parametrize(("step", "where"), [("settings", "#forecast-line"), ("review", "#forecast")])
async def test_what_is_reckoned_with_instead_of_what_was_typed_is_told(
    step: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "read_machine", lambda folder: machine(gpu(24), ram_gib=96))
    draft = Draft(step=step, kind="motion", folders=[str(make_clips(tmp_path / "clips", 2))])
    draft.values["training.steps"], draft.typed["training.steps"] = 120, "120O"
    DraftStore(tmp_path / "draft.json").save(draft)
    async with wizard(tmp_path / "draft.json") as pilot:
        await resumed(pilot, step)
        told = "! with training.steps = 120, not what is typed · "
        await until(pilot, lambda: "s/step" in static(pilot, where), "what the job takes")
        assert static(pilot, where).removeprefix("… ").startswith(told)
        state = screen_of(pilot).state
        state.set_value("training.steps", 1200)
        screen_of(pilot).post_message(Edited())
        await until(pilot, lambda: "typed" not in static(pilot, where), "the time of what is typed")
        assert "s/step" in static(pilot, where)


async def test_what_was_found_goes_with_the_last_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "read_machine", lambda folder: machine(gpu(24), ram_gib=96))
    draft = Draft(step="clips", kind="motion", folders=[str(make_clips(tmp_path / "clips", 2))])
    DraftStore(tmp_path / "draft.json").save(draft)
    async with wizard(tmp_path / "draft.json") as pilot:
        await resumed(pilot, "clips")
        await at_step(pilot, "clips")
        await until(pilot, lambda: "Clips !" in static(pilot, "#wizard-title"), "that they are few")
        await pilot.press("ctrl+x")
        await until(pilot, lambda: not screen_of(pilot).state.draft.folders, "no folder")
        assert "!" not in static(pilot, "#wizard-title")


async def test_copies_of_clips_count_among_what_was_found_and_are_left_out_by_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "read_machine", lambda folder: machine(gpu(24), ram_gib=96))
    folder = make_clips(tmp_path / "clips", 2)
    shutil.copy(folder / "clip_00.mp4", folder / "copy.mp4")
    DraftStore(tmp_path / "draft.json").save(Draft(step="clips", kind="motion", folders=[str(folder)]))
    async with wizard(tmp_path / "draft.json") as pilot:
        await resumed(pilot, "clips")
        screen = screen_of(pilot)

        def found() -> list[str]:
            return [finding.code for finding in screen.found_at("clips")]

        await until(pilot, lambda: "clip-copies" in found(), "the copy, at the step of the clips")
        screen.state.apply([f for f in screen.found_at("clips") if f.code == "clip-copies"])
        assert "!2" in static(pilot, "#wizard-title")  # they are few, too
        assert "copy.mp4" in screen.state.job().datasets[0].exclude
        screen.show()
        await until(pilot, lambda: found() and "clip-copies" not in found(), "that it trains no more")


async def test_copies_in_another_folder_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "read_machine", lambda folder: machine(gpu(24), ram_gib=96))
    folder, other = make_clips(tmp_path / "clips", 2), tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "clip_00.mp4", other / "copy.mp4")
    draft = Draft(step="clips", kind="motion", folders=[str(folder), str(other)])
    DraftStore(tmp_path / "draft.json").save(draft)
    async with wizard(tmp_path / "draft.json") as pilot:
        await resumed(pilot, "clips")
        screen = screen_of(pilot)

        def copied() -> str:
            return "".join(finding.message for finding in screen.found_at("clips") if finding.code == "clip-copies")

        await until(pilot, lambda: "copy.mp4 (clip_00.mp4)" in copied(), "the copy, at the step of the clips")
