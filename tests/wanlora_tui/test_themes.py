"""Every theme that can be chosen can be read, in colour, without it and in sixteen colours."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.color import Color, ColorSystem
from textual.theme import BUILTIN_THEMES

from tests.helpers.interface.runs import usual
from tests.wanlora_tui.screens.test_dashboard import app_over, settle
from wanlora_tui.plot.loss_plot import LossPlot
from wanlora_tui.screenshot import RecordedApp
from wanlora_tui.themes import readable

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds

DISABLED_KEYS = 1.3  # the footer's keys that do nothing now, dimmed by Textual; everything else is far above
PLOT = 2.0
PICTURE, RULES = "▀", set("─│━┃▔▁▏ ")
SELECTABLE = sorted(name for name, theme in BUILTIN_THEMES.items() if not theme.ansi)


def luminance(colour: Color) -> float:
    """Relative luminance, WCAG 2.2."""
    r, g, b = ((c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour.get_truecolor())
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: Color, other: Color) -> float:
    """From 1, the same, to 21, black on white."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def written(app: RecordedApp, *, plot: bool = False) -> Iterator[tuple[str, Color, Color]]:
    """What is on the screen (or in the loss plot only), as text with its colour and the colour behind it."""
    region = app.screen.query_one(LossPlot).content_region if plot else app.screen.region
    for y, strip in enumerate(app.screen._compositor.render_strips()):
        if region.y <= y < region.bottom:
            for segment in strip.crop(region.x, region.right):
                if PICTURE not in segment.text and set(segment.text) - RULES:
                    assert (
                        segment.style is not None
                        and segment.style.color is not None
                        and segment.style.bgcolor is not None
                    ), segment
                    yield segment.text, segment.style.color, segment.style.bgcolor


@pytest.mark.parametrize(
    ("colour", "themes"),
    [
        (True, SELECTABLE),
        (False, SELECTABLE[::5]),
        pytest.param(False, SELECTABLE, marks=pytest.mark.thorough),
    ],
    ids=["colour", "some without", "all without"],
)
async def test_every_theme_can_be_read(
    colour: bool, themes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if colour:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", "1")
    app = app_over(usual(), tmp_path)
    async with app.run_test(size=(140, 44)) as pilot:
        assert sorted(app.available_themes) == SELECTABLE
        for name in themes:
            app.theme = name
            await settle(pilot)
            everything, plot = list(written(app)), list(written(app, plot=True))
            assert (
                any("orbit_v1" in text for text, _, _ in everything)
                and any("●" in text for text, _, _ in plot)
                and any("300" in text or "1" in text for text, _, _ in plot)
            )
            assert not [(name, text) for text, front, back in everything if contrast(front, back) < DISABLED_KEYS]
            assert not [(name, text) for text, front, back in plot if contrast(front, back) < PLOT]


async def test_the_usual_theme_can_be_read_in_sixteen_colours(tmp_path: Path):
    app = app_over(usual(), tmp_path)
    async with app.run_test(size=(140, 44)) as pilot:
        await settle(pilot)
        for text, front, back in written(app):
            assert front.downgrade(ColorSystem.STANDARD).number != back.downgrade(ColorSystem.STANDARD).number, text


@pytest.mark.parametrize(
    "remembered, taken", [("ansi-light", "textual-light"), ("ansi-dark", "textual-dark"), ("nord", "nord"), ("", "")]
)
def test_a_theme_of_the_terminal_s_own_colours_gives_way(remembered: str, taken: str):
    assert readable(remembered) == taken
