"""A footer that is one widget and one line, drawn anew only when what it offers has changed, and never cut off.

Textual's own has a widget for each key, all of them made anew whenever bindings are looked at again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import ComposeResult
from textual.reactive import reactive
from textual.screen import ActiveBinding, Screen
from textual.strip import Strip
from textual.widgets import Footer

EDGE = "▏"  # in front of the palette's key
PALETTE = "app.palette"  # its action


@dataclass(frozen=True)
class Offer:
    """One key of a footer. `id`: of its action, "" for what is not ours."""

    id: str
    key: str
    shown_key: str
    label: str
    tooltip: str
    enabled: bool


class FittingFooter(Footer):
    """`spare`: ids of actions that are left out where there is no room for all, the first of them first, once the
    palette has gone without its name. They have their keys still, and stand in the help and the palette. `more`: of
    actions that no footer shows, in the room that the others leave, the first of them first. `compact`: without a
    blank around each key, as where there is no room for those."""

    COMPONENT_CLASSES = {"footer--key", "footer--label", "footer--edge", "footer--hover"}  # noqa: RUF012  (Textual's own declaration)
    DEFAULT_CSS = """
    FittingFooter {
        .footer--key { color: $footer-key-foreground; background: $footer-key-background; text-style: bold; }
        .footer--label { color: $footer-description-foreground; background: $footer-description-background; }
        .footer--edge { color: $foreground 20%; }
        .footer--hover { background: $block-hover-background; }
    }
    """

    _hovered: reactive[str] = reactive("")  # the key under the mouse

    def __init__(
        self,
        *,
        spare: Sequence[str] = (),
        more: Sequence[str] = (),
        show_command_palette: bool = True,
        compact: bool = True,
    ) -> None:
        super().__init__(show_command_palette=show_command_palette, compact=compact)
        self._spare, self._wanted = spare, more
        self._offered: list[Offer] = []
        self._more: list[Offer] = []
        self._palette: Offer | None = None  # it stands at the right
        self._awaited = False  # a look at the bindings, after the frame that is being drawn
        self._places: list[tuple[range, Offer]] = []  # columns of what is drawn

    def compose(self) -> ComposeResult:
        yield from ()

    def bindings_changed(self, screen: Screen[object]) -> None:
        """They are looked at once, after the frame of the key that has changed them."""
        if screen.app.app_focus and self.is_attached and screen is self.screen and not self._awaited:
            self._awaited = True
            self.call_after_refresh(self.look)

    def look(self) -> None:
        """See what is offered now. A dialog may be open by now, whose own footer covers this one, or the screen may be
        gone; when it is back its bindings are told of again."""
        self._awaited = False
        if not self.is_attached or not self.screen.is_current:
            return
        if self.screen is not self.app.screen and self.app.screen.query(FittingFooter):
            return
        bound = self.screen.active_bindings
        offered: dict[str, Offer] = {}  # by action: its first key is shown
        more: dict[str, Offer] = {}  # by id
        for active in bound.values():
            binding = active.binding
            if binding.show:
                offered.setdefault(binding.action, self._offer(active))
            elif binding.id and binding.id in self._wanted and active.enabled:
                more.setdefault(binding.id, self._offer(active))
        palette = None
        # a colon, which is ours, where it is not typed: browsers and editors keep Textual's ^P from their terminals
        shown = next((b for b in bound.values() if b.binding.id == PALETTE), None)
        shown = shown or bound.get(self.app.COMMAND_PALETTE_BINDING)
        if self.show_command_palette and shown is not None:
            palette = replace(self._offer(shown), id=PALETTE, label="Palette")
        now = list(offered.values()), [more[id] for id in self._wanted if id in more], palette
        if now != (self._offered, self._more, self._palette):
            self._offered, self._more, self._palette = now
            self.refresh()

    def _offer(self, active: ActiveBinding) -> Offer:
        _, binding, enabled, tooltip = active
        key = self.app.get_key_display(binding)
        key = key.upper() if key.startswith("^") else key  # as on the buttons
        return Offer(binding.id or "", binding.key, key, binding.description, tooltip, enabled)

    @property
    def shown(self) -> list[Offer]:
        """What there is room for."""
        return self._fitted()[0]

    def _fitted(self) -> tuple[list[Offer], bool]:
        """What there is room for, and whether that is without blanks."""
        keys, room = list(self._offered), self.size.width
        at_the_right = [self._palette] if self._palette is not None else []
        for compact in (self.compact, True):
            if self._columns([*keys, *at_the_right], compact) <= room:
                for each in self._more:
                    if self._columns([*keys, each, *at_the_right], compact) > room:
                        break
                    keys.append(each)
                return [*keys, *at_the_right], compact
        at_the_right = [replace(palette, label="") for palette in at_the_right]
        for spare in self._spare:
            if self._columns([*keys, *at_the_right], True) <= room:
                break
            keys = [key for key in keys if key.id != spare]
        return [*keys, *at_the_right], True

    def _columns(self, offers: Sequence[Offer], compact: bool) -> int:
        """Keys and their labels, each with all that is between it and the next."""
        return sum(cell_len(offer.shown_key) + cell_len(offer.label) + (2 if compact else 3) for offer in offers)

    def render_line(self, y: int) -> Strip:
        width, segments, self._places = self.size.width, list[Segment](), []
        plain = Style(bgcolor=self.rich_style.bgcolor)
        at = 0
        shown, compact = self._fitted()
        for offer in shown:
            if offer.id == PALETTE:
                at = max(0, width - cell_len(f"{EDGE}{offer.shown_key} {offer.label} "))
                before = Strip(segments).adjust_cell_length(at, plain)
                edge = Segment(EDGE, self.get_component_rich_style("footer--edge"))
                segments = [*before, edge, *self._segments(offer, compact=True)]
            else:
                after = [Segment(" ", plain)] if compact else []
                segments += [*self._segments(offer, compact=compact), *after]
            columns = self._columns([offer], compact)
            self._places.append((range(at, at + columns), offer))
            at += columns
        return Strip(segments).adjust_cell_length(width, plain)

    def _segments(self, offer: Offer, *, compact: bool) -> list[Segment]:
        style = Style(dim=True) if not offer.enabled else Style()
        if offer.key == self._hovered:
            style += Style(bgcolor=self.get_component_rich_style("footer--hover").bgcolor)
        key, label = (self.get_component_rich_style(f"footer--{part}") + style for part in ("key", "label"))
        if compact:
            return [Segment(offer.shown_key, key), Segment(f" {offer.label}", label)]
        return [Segment(f" {offer.shown_key} ", key), Segment(f"{offer.label} ", label)]

    def _at(self, x: int) -> Offer | None:
        return next((offer for columns, offer in self._places if x in columns), None)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        offer = self._at(event.x)
        self._hovered = offer.key if offer is not None else ""
        self.tooltip = offer.tooltip or None if offer is not None else None

    def on_leave(self) -> None:
        self._hovered = ""

    def on_mouse_down(self, event: events.MouseDown) -> None:
        offer = self._at(event.x)
        if offer is None:
            return
        if offer.enabled:
            self.app.simulate_key(offer.key)
        else:
            self.app.bell()
