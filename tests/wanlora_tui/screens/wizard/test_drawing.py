"""What is drawn of a screen on which little has changed is what would be drawn of all of it."""

import asyncio
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.segment import Segment
from textual import events
from textual._compositor import ChopsUpdate, Compositor
from textual._styles_cache import StylesCache
from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from presets.look import Look
from tests.helpers.interface.wizard_pilot import (
    at_step,
    make_base,
    make_clips,
    scanned,
    screen_of,
    screen_text,
    until,
    wizard,
)
from tests.helpers.waiting import PATIENCE, until_async
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.terminal.sparing_compositor import SparingCompositor
from wanlora_tui.widgets import redraw_throttle
from wanlora_tui.widgets.field_input import FieldInput
from wanlora_tui.widgets.key_order import KeysInOrder
from wanlora_tui.widgets.redraw_throttle import SparingScreen

pytestmark = pytest.mark.process  # takes seconds


def cells_of(update: ChopsUpdate) -> list[tuple[int, int, list[Segment]]]:
    """What an update writes: row, column, text with its styles."""
    return [
        (y, x, list(strip.simplify()))
        for y, left, right in update.spans
        for (x, strip), end in zip(update.chops[y].items(), update.chop_ends[y], strict=True)
        if strip is not None and left < end and x < right
    ]


def test_textual_still_has_what_is_replaced() -> None:
    """None of it is public: Textual has no public way to draw at once, and none to draw less. What is missing would
    otherwise show only as a screen that is drawn late, twice or not at all."""
    lacking = [
        f"{kind.__name__}.{name}"
        for kind, names in {
            Compositor: ("reflow", "render_partial_update", "_get_renders", "visible_widgets"),
            Screen: ("_on_timer_update", "_compositor_refresh"),
            Widget: ("render_lines", "get_line_filters", "hover_style"),
        }.items()
        for name in names
        if not hasattr(kind, name)
    ]
    objects = Compositor(), Screen[None](), StylesCache()
    for thing, names in zip(
        objects,
        (
            ("_dirty_regions", "_full_map_invalidated"),
            ("_compositor", "_layout_required", "_styles_cache"),
            ("_width", "_dirty_lines", "_cache"),
        ),
        strict=True,
    ):
        lacking += [f"{type(thing).__name__}.{name}" for name in names if name not in vars(thing)]
    assert not lacking, f"Textual {version('textual')} lacks {', '.join(lacking)}: see {redraw_throttle.__name__}"
    assert "_layout_required" in Screen._on_timer_update.__code__.co_names, "drawing at once lays nothing out"


async def test_little_is_drawn_and_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base(tmp_path / "base")
    clips = make_clips(tmp_path / "clips", 4)
    values = {"model.path": str(tmp_path / "base")}
    DraftStore(tmp_path / "draft.json").save(Draft(step="clips", kind="motion", folders=[str(clips)], values=values))
    drawn: list[tuple[int, int]] = []
    sparing, plain = SparingCompositor.render_partial_update, Compositor.render_partial_update
    count = 0

    def counted(renders: Iterable[Any]) -> Iterator[Any]:
        nonlocal count
        for render in renders:
            count += 1
            yield render

    def both(self: SparingCompositor) -> ChopsUpdate | None:
        nonlocal count
        parts, count = self._dirty_regions.copy(), 0
        update = sparing(self)
        own, count = count, 0
        self._dirty_regions.update(parts)
        whole = plain(self)
        assert (update is None) == (whole is None)
        if update is not None and whole is not None:
            assert cells_of(update) == cells_of(whole)
            drawn.append((own, count))
        return update

    own_renders = SparingCompositor._get_renders
    monkeypatch.setattr(SparingCompositor, "_get_renders", lambda self, crop=None: counted(own_renders(self, crop)))

    async with wizard(tmp_path / "draft.json") as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await scanned(pilot)
        monkeypatch.setattr(SparingCompositor, "render_partial_update", both)
        screen = screen_of(pilot)
        screen.query_one("#clips").focus()
        await pilot.press("down", "x", "up")
        await screen.go_to("captions", field="datasets[0].default_caption")
        await pilot.press("a", "tab", "1", "backspace")
        await screen.go_to("settings", field="training.steps")
        drawn.clear()
        await pilot.press("end", "7")
        await pilot.pause()
        assert drawn and min(a / b for a, b in drawn) < 0.5, drawn
        await pilot.press("z")  # a line comes under the field, and goes
        await until(pilot, lambda: "Expected integer" in screen_text(pilot.app), "the line")
        await pilot.press("backspace", "tab", "pagedown", "shift+tab")
        assert "7" in str(screen.query_one("#field-training-steps", FieldInput).value)


class Typed(Screen[None]):
    """Says that a key has come, and more once it is let go."""

    go = asyncio.Event()

    def compose(self) -> ComposeResult:
        yield Static("nothing")

    async def on_key(self) -> None:
        self.query_one(Static).update("first")
        await self.go.wait()
        self.query_one(Static).update("all")


class TypedScreen(Typed, SparingScreen[None]):
    pass


async def test_what_a_key_sets_off_is_drawn_once_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redraw_throttle, "HELD", PATIENCE)
    app = KeysInOrder()
    app.patience = PATIENCE
    async with app.run_test(size=(40, 4)) as pilot:
        screen = TypedScreen()
        await app.push_screen(screen)
        await until(pilot, lambda: "nothing" in screen_text(app), "the screen")
        drawn: list[str] = []
        refresh = screen._compositor_refresh
        monkeypatch.setattr(
            screen, "_compositor_refresh", lambda: (drawn.append(str(screen.query_one(Static).render())), refresh())
        )
        app.post_message(events.Key("x", "x"))
        await until_async(lambda: "first" in str(screen.query_one(Static).render()), "the key")
        screen._on_timer_update()
        assert app.is_taking and not drawn
        screen.go.set()
        await until_async(lambda: drawn, "the picture")
        assert drawn[0] == "all" and not app.is_taking


async def test_how_far_a_look_is_lays_out_the_screen_only_when_its_lines_are_more_or_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    DraftStore(tmp_path / "draft.json").save(Draft(step="clips", kind="motion", folders=[str(clips)]))
    laid_out: list[str] = []
    async with wizard(tmp_path / "draft.json", size=(64, 24)) as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await scanned(pilot)
        await screen_of(pilot).go_to("captions")
        await until(pilot, lambda: not screen_of(pilot).looking, "the end of all looks")
        label, pane = screen_of(pilot).query_one("#caption-count", Static), screen_of(pilot).pane
        assert pane is not None and label.content_size.height == 1
        refresh = label.refresh

        def noted(*regions: Any, layout: bool = False, **others: Any) -> Any:
            laid_out.extend(["layout"] * layout)
            return refresh(*regions, layout=layout, **others)

        monkeypatch.setattr(label, "refresh", noted)
        look = screen_of(pilot).state.looks[str(clips)] = Look()
        shown = []
        for look.done in (4900, 4950, 0):
            if not look.done:
                look.end()
            pane.show_progress()
            await pilot.pause()
            shown.append((len(laid_out), label.content_size.height))
        (first, *_), (second, *_), (third, *_) = shown
        assert [height for _, height in shown] == [2, 2, 1] and 0 < first == second < third, shown
