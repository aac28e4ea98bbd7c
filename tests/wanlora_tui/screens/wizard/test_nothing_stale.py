"""After whatever keys, themes and sizes, what has been written to the terminal is what Textual makes of the screen when
nothing that was drawn before is known."""

import random
from pathlib import Path

import pytest

from presets.clips.likeness.alike import Twin
from tests.helpers.interface.drawn import Drawn, settled, stale
from tests.helpers.interface.wizard_pilot import WizardApp, at_step, make_base, make_clips, scanned, screen_of, until
from tests.helpers.interface.wizard_pilot import wizard as running
from wanlora_tui.draft.draft_store import Draft, DraftStore

pytestmark = pytest.mark.process  # takes seconds

KEYS = (
    *["j", "k", "down", "up", "pagedown", "pageup", "G", "g", "home", "end"] * 2,
    *["x", "tab", "shift+tab", "tab", "a", "7", "backspace", "left", "right"],
)
THEMES = ("textual-light", "textual-dark", "nord", "solarized-light")
SIZES = ((80, 24), (100, 30), (160, 48), (58, 18), (81, 24))


@pytest.mark.parametrize("colours", [True, pytest.param(False, marks=pytest.mark.thorough)])
async def test_no_stale_line_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colours: bool) -> None:
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Drawn()
    monkeypatch.setattr(WizardApp, "_display", lambda app, screen, update: app._batch_count or terminal.take(update))
    make_base(tmp_path / "base")
    clips = make_clips(tmp_path / "clips", 2, frames=9)
    for i in range(2, 60):  # the rest are copies under names of their own, wide ones too
        name = f"片 {i:02}" if i % 3 == 0 else f"clip_{i:02}"
        (clips / f"{name}.mp4").write_bytes((clips / "clip_00.mp4").read_bytes() + bytes(i))
        (clips / f"{name}.txt").write_text(f"一只猫 {i} 在走 " * (i % 7))
    values = {"model.path": str(tmp_path / "base")}
    DraftStore(tmp_path / "draft.json").save(Draft(step="clips", kind="motion", folders=[str(clips)], values=values))
    dice = random.Random(7)
    async with running(tmp_path / "draft.json") as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await scanned(pilot)
        screen, done = screen_of(pilot), []
        await until(pilot, lambda: not screen.looking, "clips that are alike")
        for turn in range(16):
            if turn % 12 == 0:
                step, widget = dice.choice([("clips", "#clips"), ("captions", "#captions"), ("settings", "#form")])
                await screen.go_to(step)
                found = screen.query(widget).first()
                if found.can_focus:
                    found.focus()
                done.append(step)
            kind = dice.random()
            if kind < 0.1:
                done.append(theme := dice.choice(THEMES))
                pilot.app.theme = theme
            elif kind < 0.2:
                done.append(size := dice.choice(SIZES))
                await pilot.resize_terminal(*size)
            elif kind < 0.35:  # what is known of rows changes, also of those that are out of sight
                state = screen.state
                entry = dice.choice(sorted(c.path for c in state.scans[str(clips)].clips))
                state.held_out = {str(clips): {entry}}
                state.twins[str(clips)] = {entry: Twin("looks like", [str(turn), Path(entry).name])}
                screen.show()
                done.append("rows")
            else:
                keys = [dice.choice(KEYS) for _ in range(dice.randint(1, 4))]
                done += keys
                await pilot.press(*keys)
            await settled(pilot)
            assert stale(terminal, screen) is None, done[-12:]
