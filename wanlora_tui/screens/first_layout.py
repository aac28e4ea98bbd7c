"""A screen whose first layout is already that of the terminal's size."""

from wanlora_tui.widgets.redraw_throttle import SparingScreen


class FirstLayout(SparingScreen[None]):
    """Textual lays a screen out before it sets the classes of its breakpoints: a wide terminal would show the narrow
    one for a frame, and all would be styled, laid out and drawn twice."""

    def on_compose(self) -> None:
        classes = (self.HORIZONTAL_BREAKPOINTS or [], self.VERTICAL_BREAKPOINTS or [])
        for cells, breakpoints in zip(self.app.size, classes, strict=True):
            self.add_class(*[name for least, name in sorted(breakpoints) if least <= cells][-1:])
