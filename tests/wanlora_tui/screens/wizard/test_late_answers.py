"""Answers of threads in another order than they usually come."""

import gc
import time
import weakref
from pathlib import Path

import pytest

from presets.look import Look
from tests.helpers.interface.wizard_pilot import at_step, make_base, make_clips, scanned, screen_of, until, wizard
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.screens.wizard import reading
from wanlora_tui.screens.wizard.review import ReviewPane
from wanlora_tui.widgets import key_order
from wanlora_tui.widgets.key_order import KeysInOrder

pytestmark = pytest.mark.process  # takes seconds


async def test_a_reckoning_behind_the_review_takes_none_of_its_findings_away(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    clips = make_clips(tmp_path / "clips", 2, frames=9)
    (clips / "copy.mp4").write_bytes((clips / "clip_00.mp4").read_bytes())  # what only the review's look finds
    values = {"model.path": str(tmp_path / "base")}
    DraftStore(tmp_path / "draft.json").save(Draft(step="review", kind="motion", folders=[str(clips)], values=values))
    async with wizard(tmp_path / "draft.json") as pilot:
        await pilot.press("enter")
        await at_step(pilot, "review")
        await scanned(pilot)
        screen = screen_of(pilot)
        pane = screen.pane
        assert isinstance(pane, ReviewPane)
        await until(pilot, lambda: not (pane.checking or pane.watching), "the review")
        assert "clip-copies" in [f.code for f in pane.rules_found]
        screen.forecast, checks = None, pane.revision
        screen.reckon_soon()
        await until(pilot, lambda: screen.forecast is not None and not screen._reckoning, "the reckoning")
        assert pane.revision == checks, "the review has not looked again"
        assert screen.findings == pane.rules_found


async def test_how_far_a_look_is_waits_for_the_fingers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = make_clips(tmp_path / "clips", 2, frames=9)
    DraftStore(tmp_path / "draft.json").save(Draft(step="clips", kind="motion", folders=[str(clips)]))
    async with wizard(tmp_path / "draft.json") as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await scanned(pilot)
        screen, shown = screen_of(pilot), []
        assert screen.pane is not None and isinstance(pilot.app, KeysInOrder)
        monkeypatch.setattr(screen.pane, "show_progress", lambda: shown.append(1))
        screen.pane.look = Look()
        pilot.app.taken_at = time.monotonic() + 3600
        screen._show_progress()
        assert not shown
        pilot.app.taken_at = time.monotonic() - 2 * reading.PROGRESS
        screen._show_progress()
        assert shown


async def test_what_stays_is_frozen_where_no_key_waits(tmp_path: Path) -> None:
    class Ring:
        def __init__(self) -> None:
            self.own = self

    def ring() -> weakref.ref[Ring]:
        return weakref.ref(Ring())

    async with wizard(tmp_path / "draft.json") as pilot:
        screen, app = screen_of(pilot), pilot.app
        screen.freeze_between_keys()
        kept = ring()
        app.taken_at = time.monotonic()
        screen._freeze_rest()
        assert kept() is not None, "a key has just come, and more may"
        app.taken_at -= key_order.IDLE
        screen._freeze_rest()
        assert kept() is None, "nothing that is garbage by now is frozen"
        frozen = gc.get_freeze_count()
        screen._freeze_rest()
        assert gc.get_freeze_count() <= frozen, "nor what comes later"
    assert gc.get_freeze_count() == 0
