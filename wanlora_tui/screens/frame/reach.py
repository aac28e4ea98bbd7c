"""Which widgets Tab may stop at: nobody should press what nobody sees."""

from textual.dom import NoScreen
from textual.errors import NoWidget
from textual.widget import Widget


def can_be_seen(widget: Widget) -> bool:
    """It is on the screen, at least in part, or something around it scrolls until it is."""
    try:
        place = widget.screen.find_widget(widget)
    except (NoWidget, NoScreen):
        return True  # it has no place yet
    if place.visible_region.area:
        return True
    if not place.region.area:
        return False
    around = (w for w in widget.ancestors if isinstance(w, Widget) and w is not widget.screen)
    return any((w.allow_vertical_scroll or w.allow_horizontal_scroll) and w.region.area for w in around)


def bring_in_sight(widget: Widget) -> None:
    """Scroll all that is around a widget until it is seen: Textual leaves a row where it is that scrolls sideways."""
    if not widget.is_attached:
        return
    for around in widget.ancestors:
        if isinstance(around, Widget) and around is not widget.screen and around.allow_vertical_scroll:
            around.scroll_to_widget(widget, animate=False, force=True)
