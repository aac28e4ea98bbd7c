"""The styles that inks have in a theme: what is faint is not so faint that nobody sees it."""

from collections.abc import Mapping

from rich.style import Style
from textual.color import Color

from wanlora_tui.plot.braille import LAYER
from wanlora_tui.plot.curves import BRANCH, LABEL, LINE, MARK, RAW, RULE, STRONG

# theme variables of the first run's two experts, the second's ...
COLOURS = ("text-accent", "text-primary", "text-success", "text-warning", "text-error", "text-secondary", "foreground")
# layer or ink -> the part of the ground that is mixed in, at most
FAINT = {RAW: 0.5, BRANCH: 0.25, RULE: 0.5, LABEL: 0.25}

SEEN = 2.5  # the least contrast to the ground
STEP = 0.05


def luminance(colour: Color) -> float:
    """Relative luminance, WCAG 2.2."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.normalized)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: Color, other: Color) -> float:
    """From 1, the same, to 21, black on white."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def faint(colour: Color, ground: Color, most: float) -> Color:
    """With up to the part `most` of the ground mixed in."""
    part = most
    while part > 0 and contrast(colour.blend(ground, part), ground) < SEEN:
        part -= STEP
    return colour.blend(ground, max(0.0, part))


def variable_of(number: int) -> str:
    """The theme variable of a curve."""
    return COLOURS[number % len(COLOURS)]


def style_of(ink: int, theme: Mapping[str, str]) -> Style:
    layer = ink // LAYER * LAYER
    variable = variable_of(ink % LAYER) if layer else "text-warning" if ink == MARK else "foreground"
    colour = faint(Color.parse(theme[variable]), Color.parse(theme["surface"]), FAINT.get(layer or ink, 0.0))
    return Style(color=colour.hex6, bold=layer == LINE or ink == STRONG)
