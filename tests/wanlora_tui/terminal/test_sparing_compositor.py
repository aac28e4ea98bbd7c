"""What is asked of a widget when a part of it has changed; that the same is drawn as Textual draws is shown where
screens are."""

import pytest
from textual.app import App, ComposeResult
from textual.geometry import Region
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget

from wanlora_tui.terminal import sparing_compositor
from wanlora_tui.terminal.sparing_compositor import SparingCompositor

pytestmark = pytest.mark.unit


class Asked(Widget):
    """Notes for which of its lines it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.crops: list[Region] = []

    def render_lines(self, crop: Region) -> list[Strip]:
        self.crops.append(crop)
        return super().render_lines(crop)


class Sixels(Asked):
    """As the widget of textual_image whose picture is one sequence, drawn from where the widget begins."""


class Drawn(Screen[None]):
    def __init__(self, kind: type[Asked]) -> None:
        super().__init__()
        self._compositor = SparingCompositor()
        self.kind = kind

    def compose(self) -> ComposeResult:
        yield self.kind()


@pytest.mark.parametrize(("kind", "lines"), [(Asked, Region(0, 3, 80, 2)), (Sixels, Region(0, 0, 80, 24))])
async def test_a_part_is_asked_for_and_of_sixels_the_whole(
    kind: type[Asked], lines: Region, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Sixels, "__module__", sparing_compositor.SIXEL)
    app = App[None]()
    async with app.run_test(size=(80, 24)) as pilot:
        await app.push_screen(Drawn(kind))
        await pilot.pause()
        widget = app.screen.query_one(Asked)
        widget.styles.height = "1fr"
        await pilot.pause()
        widget.crops.clear()
        widget.refresh(Region(0, 3, 80, 2))
        await pilot.pause()
        assert widget.crops == [lines]
