"""Every step at the three sizes that terminals have: nothing outside the screen, nothing clipped, and readable without
colour."""

from pathlib import Path

import pytest
from textual.errors import NoWidget
from textual.widget import Widget
from textual.widgets import Button, Input, Select, Static

from tests.helpers.interface.wizard_pilot import (
    at_step,
    make_base,
    make_clips,
    make_image,
    screen_of,
    screen_text,
    until,
    wizard,
)
from tests.helpers.tiers import thorough
from tests.wanlora_tui.screens.wizard.test_wizard import a_draft, at_field, resumed, reviewed
from wanlora_tui.draft.job_draft import PANELS
from wanlora_tui.draft.steps import NAMES, STEPS
from wanlora_tui.widgets.field_input import FieldInput
from wanlora_tui.widgets.long_table import LongTable

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # for its length

SIZES = [(80, 24), (100, 30), (160, 48)]
OPENED_AT = [SIZES[0], *(pytest.param(size, marks=pytest.mark.thorough) for size in SIZES[1:])]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_clips(tmp_path / "orbit", 2)
    make_clips(tmp_path / "more", 1)
    make_image(tmp_path / "castle.png")
    make_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scrolls(widget: Widget) -> bool:
    """It, or something around it, can be scrolled until it is seen."""
    return any(isinstance(w, Widget) and w.allow_vertical_scroll for w in widget.ancestors_with_self)


def assert_all_seen(screen, step: str) -> None:  # type: ignore[no-untyped-def]
    width, height = screen.size
    for widget in screen.walk_children(Widget):
        if not widget.display or (not widget.is_on_screen and not scrolls(widget)):
            continue
        region = widget.region
        if region.area:
            assert region.x >= 0 and region.right <= width, f"{step}: {widget} leaves the screen sideways: {region}"
            assert scrolls(widget) or (region.y >= 0 and region.bottom <= height), (
                f"{step}: {widget} leaves the screen: {region}"
            )
        if isinstance(widget, Input | Select | Button) and any(w.id == "pane" for w in widget.ancestors):
            assert region.width >= (10 if isinstance(widget, Input | Select) else len(str(widget.label))), (
                f"{step}: {widget} is squeezed: {region}"
            )
    for name in ("back", "next"):
        button = screen.query_one(f"#{name}", Button)
        assert button.region.width >= len(str(button.label)) + 2 and button.region.bottom <= height


@pytest.mark.parametrize("size", OPENED_AT)
async def test_every_step_fits(work: Path, size: tuple[int, int]) -> None:
    draft = a_draft(
        work,
        "kind",
        folders=[str(work / "orbit"), str(work / "more")],
        values={"model.path": str(work / "base"), "datasets[0].num_frames": 40},
    )
    async with wizard(draft, size=size) as pilot:
        await resumed(pilot, "kind")
        for i, name in enumerate(NAMES):
            await at_step(pilot, name)
            screen = screen_of(pilot)
            text = screen_text(pilot.app)
            assert f"step {i + 1} of 6" in text and STEPS[i].title in text
            assert ("✓ 1 Kind" in text) == (size[0] >= 110 and i > 0)
            if name == "prompts":
                await pilot.press("f5", "f5")
                await until(pilot, lambda: screen_of(pilot).query("#prompt-1"), "two prompts")
            if name == "review":
                await reviewed(pilot)
            if name == "settings":
                for panel in PANELS:
                    screen.query_one("#panels").focus()
                    await pilot.press("down")
                    await until(
                        pilot,
                        lambda panel=panel: (
                            screen_of(pilot).query(FieldInput)
                            and screen_of(pilot).query(FieldInput).first().path.startswith(panel)
                        ),
                        f"the form {panel}",
                    )
                    assert_all_seen(screen, f"settings/{panel}")
            assert_all_seen(screen, name)
            await pilot.press("f8")


@pytest.mark.parametrize("size", OPENED_AT)
async def test_dialogs_fit_and_a_resize_is_survived(work: Path, size: tuple[int, int]) -> None:
    async with wizard(a_draft(work, "clips"), size=size) as pilot:
        await resumed(pilot, "clips")
        for key in ("f1", "f4", "escape"):
            await pilot.press(key)
            await until(pilot, lambda: pilot.app.screen is not screen_of(pilot), f"what {key} opens")
            box = next(child for child in pilot.app.screen.children if not child.id or "textual" not in child.id)
            await until(pilot, lambda box=box: box.region.area, "its box")
            assert box.region in pilot.app.screen.region and box.region.height > 4
            await pilot.press("escape")
            await until(pilot, lambda: pilot.app.screen is screen_of(pilot), "the wizard")
        for other in SIZES:
            await pilot.resize_terminal(*other)
            await pilot.pause()
            assert_all_seen(screen_of(pilot), f"clips at {other}")


def in_view(widget: Widget) -> bool:
    """All its rows that there are, and of a button most of its label."""
    try:
        found = widget.screen.find_widget(widget)
    except NoWidget:
        return False
    seen, rows = found.visible_region, found.region.height if isinstance(widget, Button) else 1
    return seen.height >= rows and seen.width >= min(8, found.region.width)


async def tab_through(pilot, where: str) -> None:  # type: ignore[no-untyped-def]
    """Once round, and all that gets the focus is seen."""
    first, widget = None, None
    while first is None or widget is not first:
        await pilot.press("tab")
        widget = pilot.app.focused
        assert widget is not None, where
        await until(pilot, lambda widget=widget: in_view(widget), f"{where}: {widget}")
        first = first or widget


@pytest.mark.parametrize("size", [(40, 10), pytest.param((60, 15), marks=pytest.mark.thorough)])
async def test_tab_reaches_nothing_that_is_not_seen(work: Path, size: tuple[int, int]) -> None:
    dialogs = {"clips": ("f4", "escape"), "captions": ("t",)}
    async with wizard(a_draft(work, "kind"), size=size) as pilot:
        await resumed(pilot, "kind")
        for name in NAMES:
            await at_step(pilot, name)
            if name == "review":
                await reviewed(pilot)
            await tab_through(pilot, name)
            for key in dialogs.get(name, ()):
                screen_of(pilot).query(LongTable).first().focus()
                await pilot.press(key)
                await until(pilot, lambda: pilot.app.screen is not screen_of(pilot), f"what {key} opens")
                await tab_through(pilot, f"{name} {key}")
                await pilot.press("escape")
                await until(pilot, lambda: pilot.app.screen is screen_of(pilot), "the wizard")
            await pilot.press("f8")


async def test_it_reads_without_colour(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR every state is still told: by glyph, by word, and the focus by its mark."""
    monkeypatch.setenv("NO_COLOR", "1")
    draft = a_draft(
        work, "settings", values={"model.path": str(work / "base"), "target.rank": 64, "datasets[0].num_frames": 40}
    )
    async with wizard(draft) as pilot:
        assert pilot.app.no_color
        await resumed(pilot, "settings")
        await at_field(pilot, "target.rank")
        text = screen_text(pilot.app)
        assert "TARGET ●1" in text and "● yours, ◆ 16" in text and "▸Linear rank" in text, text
        await pilot.press("f8", "f8")
        await reviewed(pilot)
        text = screen_text(pilot.app)
        assert "✗ ERRORS" in text and "✗ datasets[0].num_frames" in text and "fix (f):" in text


@pytest.mark.parametrize("size", [(80, 24), *thorough((77, 24), (60, 15)), (40, 10)])
async def test_the_notes_of_settings_are_read_whole(work: Path, size: tuple[int, int]) -> None:
    values = {"model.path": str(work / "base"), "training.lr": 0.000123}
    async with wizard(a_draft(work, "settings", values=values), size=size) as pilot:
        await resumed(pilot, "settings")
        screen = screen_of(pilot)
        for panel in ("quantization", "model", "training", "target", "multistage"):
            await screen.go_to("settings", field=f"{panel}.none")
            rows = list(screen.query(FieldInput))
            for row in rows:
                row.set_meaning("float8, 26 blocks resident")
            await pilot.pause()
            form = screen.query_one("#form")
            for row in rows:
                note, label = row.query_one(".field-note", Static), row.query_one(".field-label")
                drawn = " ".join(" ".join(line.text for line in note.render_lines(note.outer_size.region)).split())
                assert drawn == str(note.content), f"{row.path}: its note is cut"
                assert note.region.right <= form.scrollable_content_region.right, f"{row.path}: its note leaves it"
                assert label.region.width >= 24 and row.control.region.width >= 10, row.path
