"""What is faint can still be seen."""

import pytest
from textual.color import Color

from wanlora_tui.plot.colours import SEEN, contrast, faint


@pytest.mark.parametrize("ground", ["#000000", "#ffffff", "#1e1e2e", "#eff1f5"])
def test_faint_is_between_the_colour_and_the_ground_and_can_be_seen(ground: str):
    back = Color.parse(ground)
    colour = back.inverse
    found = faint(colour, back, 0.5)
    assert SEEN <= contrast(found, back) < contrast(colour, back) or found == colour
    assert faint(back, back, 0.5) == back  # nothing can be done for it
