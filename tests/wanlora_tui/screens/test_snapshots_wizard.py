"""Pictures of the wizard's steps and of what opens over them."""

import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList

from presets.job.schema import PromptPanel
from tests.helpers.facts import gpu, machine
from tests.helpers.interface.wizard_pilot import (
    WizardApp,
    as_large_as_the_real_one,
    at_step,
    focus_field,
    make_base,
    make_image,
    scanned,
    screen_of,
    screen_text,
    until,
)
from tests.helpers.videos import write_clip
from tests.wanlora_tui.screens.conftest import SIZES, Picture, Sizes, at_sizes
from wanlora_tui.draft import forecast
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.draft.steps import NAMES
from wanlora_tui.screens.wizard import reading
from wanlora_tui.screens.wizard.clip_dialogs import CaptionDialog
from wanlora_tui.screens.wizard.review import ReviewPane
from wanlora_tui.widgets.clip_table import ClipTable

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds
PROMPT = PromptPanel(prompt="orbit 360 around the castle", ctrl_img="control/castle.png")
WRONG: dict[str, Any] = {"training.lr": 5.0, "datasets[0].num_frames": 40}


@pytest.fixture
def left_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., WizardApp]:
    """A wizard whose draft was left at a step, over real clips, one of which is broken, one without a caption and one
    left out; on a machine that is always the same."""
    clips = folder / "orbit"
    clips.mkdir()
    flat = np.full((96, 96, 3), (64, 96, 128), np.uint8)  # of anything else no two encodings need be the same bytes
    whole = write_clip(clips / "clip_00.mp4", 48, 16.0, 96, 96, picture=lambda i: flat).read_bytes()
    for i in range(4):
        (clips / f"clip_{i:02}.mp4").write_bytes(whole)
        if i != 1:
            (clips / f"clip_{i:02}.txt").write_text(f"orbit {90 * (i + 1)} around the subject")
    make_image(folder / "control" / "castle.png")
    as_large_as_the_real_one(make_base(folder / "base"))  # of a toy no plan is made
    here = machine(gpu(80))
    monkeypatch.setattr(reading, "read_machine", lambda folder: here)
    noon = time.mktime((2026, 11, 26, 12, 0, 0, 0, 0, -1))
    clock = SimpleNamespace(time=lambda: noon, localtime=time.localtime, strftime=time.strftime)
    monkeypatch.setattr(forecast, "time", clock)

    def app(step: str, values: dict[str, Any]) -> WizardApp:
        if step == "clips":
            (clips / "broken.mp4").write_text("no film at all")
        if step != "kind":
            plain = {"model.path": "base", "job.name": "orbit_v1", "datasets[0].exclude": ["clip_03.mp4"]}
            draft = Draft(step=step, kind="motion", folders=["orbit"], values=plain | values, prompts=[PROMPT])
            DraftStore(folder / "draft.json").save(draft)
        return WizardApp(folder / "draft.json")

    return app


def is_known(pilot: Pilot[None]) -> bool:
    """All that is read and reckoned of the draft is there."""
    screen = screen_of(pilot)
    if screen.step == "kind":
        return True
    pane, words = screen.pane, screen_text(pilot.app)
    if screen.looking or screen._reckoning or (screen.state.ready and screen.forecast is None):
        return False
    if screen._growing_old is not None:  # the last change waits to be reckoned, or is
        return False
    if re.search(r"(^|\s)… \w", words):  # what is still looked at, by its own words
        return False
    return not isinstance(pane, ReviewPane) or not (pane.checking or pane.watching)


async def begin(pilot: Pilot[None], step: str) -> None:
    if step != "kind":
        await until(pilot, lambda: "Continue the half-filled job" in screen_text(pilot.app), "the offer")
        await pilot.press("enter")
    await at_step(pilot, step)
    if step != "kind":
        await scanned(pilot)
        await until(pilot, lambda: is_known(pilot), "all that is read")


async def nothing(pilot: Pilot[None]) -> None:
    """As it opens."""


async def rate(pilot: Pilot[None]) -> None:
    """The form of the training, in a field."""
    await screen_of(pilot).go_to_field("training.lr")
    await focus_field(pilot, "training.lr")


async def clip(pilot: Pilot[None]) -> None:
    screen_of(pilot).query_one(ClipTable).focus()
    await pilot.pause()
    await pilot.press("j", "enter")
    await until(pilot, lambda: isinstance(pilot.app.screen, CaptionDialog), "the clip")


async def leave(pilot: Pilot[None]) -> None:
    screen_of(pilot).action_leave()
    await until(pilot, lambda: "Leave the wizard?" in screen_text(pilot.app), "the question")


async def palette(pilot: Pilot[None]) -> None:
    await pilot.press("ctrl+p")
    await pilot.press(*"rank")
    await until(pilot, lambda: "target.rank" in screen_text(pilot.app), "the field")


async def findings(pilot: Pilot[None]) -> None:
    screen_of(pilot).action_findings()
    await until(pilot, lambda: pilot.app.screen.query(OptionList) and pilot.app.screen is not screen_of(pilot), "them")


async def step_help(pilot: Pilot[None]) -> None:
    screen_of(pilot).action_step_help()
    await until(pilot, lambda: pilot.app.screen is not screen_of(pilot), "the help")


Act = Callable[[Pilot[None]], Awaitable[None]]
STATES: dict[str, tuple[str, Act, dict[str, Any]]] = {
    "kind": ("kind", nothing, {}),
    "clips": ("clips", nothing, {}),
    "clip": ("clips", clip, {}),
    "captions": ("captions", nothing, {}),
    "settings": ("settings", nothing, {}),
    "settings_field": ("settings", rate, {}),
    "prompts": ("prompts", nothing, {}),
    "review": ("review", nothing, {}),
    "review_errors": ("review", nothing, WRONG),
    "findings": ("settings", findings, WRONG),
    "help": ("settings", step_help, {}),
    "leave": ("prompts", leave, {}),
    "palette": ("settings", palette, {}),
}


@pytest.mark.parametrize(("state", "sizes"), at_sizes(STATES, whole=("clips", "settings", "review"), plain=NAMES))
async def test_wizard(state: str, sizes: Sizes, picture: Picture, left_at: Callable[..., WizardApp]) -> None:
    step, act, values = STATES[state]
    async with left_at(step, values).run_test(size=SIZES[0]) as pilot:
        await begin(pilot, step)
        await act(pilot)
        await picture(pilot, sizes, ready=(lambda: is_known(pilot)) if act in (nothing, rate) else lambda: True)
