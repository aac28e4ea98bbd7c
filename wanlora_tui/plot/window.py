"""Which steps a plot shows: all of them, or a part that the user has zoomed to. Pure arithmetic."""

from dataclasses import dataclass

LEAST = 8.0  # steps that can be zoomed to


@dataclass(frozen=True)
class Window:
    """From step `low` to step `high`."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


def zoomed(window: Window, whole: Window, at: float, factor: float) -> Window | None:
    """`factor` times as wide, with the step `at` where it was; None once it shows all there is."""
    width = max(min(LEAST, whole.width), window.width * factor)
    if width >= whole.width:
        return None
    part = (at - window.low) / window.width if window.width else 0.5
    return within(Window(at - part * width, at - part * width + width), whole)


def panned(window: Window, whole: Window, by: float) -> Window:
    """Moved by so many steps, no further than there are any."""
    return within(Window(window.low + by, window.high + by), whole)


def within(window: Window, whole: Window) -> Window:
    low = max(whole.low, min(window.low, whole.high - window.width))
    return Window(low, min(whole.high, low + window.width))
