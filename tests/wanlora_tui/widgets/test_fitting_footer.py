"""The footer: what it offers, when it looks, what there is room for, and the mouse over it."""

from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.screen import Screen
from textual.widgets import Button, Input

from tests.helpers.interface.wizard_pilot import until
from wanlora_tui.actions import bindings
from wanlora_tui.widgets.fitting_footer import FittingFooter


async def test_a_footer_whose_screen_is_gone_looks_at_nothing():
    app: App[None] = App()
    async with app.run_test() as pilot:
        screen = Screen[None]()
        footer = FittingFooter()
        await app.push_screen(screen)
        await screen.mount(footer)
        await pilot.pause()
        await app.pop_screen()
        assert not footer.is_attached
        footer.look()


class Counted(FittingFooter):
    """How often it has looked at the bindings."""

    looks = 0

    def look(self) -> None:
        self.looks += 1
        super().look()


class Two(Screen[None]):
    BINDINGS = [Binding("s", "stop", "Stop", id="stop"), ("r", "resume", "Resume")]  # noqa: RUF012
    stops: bool | None = True
    stopped = 0

    def compose(self) -> ComposeResult:
        yield Counted(spare=["stop"], show_command_palette=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.stops if action == "stop" else True

    def action_stop(self) -> None:
        self.stopped += 1


def labels(footer: FittingFooter) -> list[str]:
    return [key.label for key in footer.shown]


def drawn(footer: FittingFooter) -> str:
    return footer.render_line(0).text.rstrip()


async def test_what_is_asked_for_twice_before_it_is_drawn_is_looked_at_once():
    """Each look costs as much as a small frame; at a start and with each step there are several at once."""
    app: App[None] = App()
    async with app.run_test() as pilot:
        screen = Two()
        await app.push_screen(screen)
        footer = screen.query_one(Counted)
        await until(pilot, lambda: labels(footer) == ["Stop", "Resume"], "the keys")
        looks = footer.looks

        def change(*stops: bool) -> None:
            for screen.stops in stops:
                footer.bindings_changed(screen)

        footer.call_next(change, False, True, False)
        await until(pilot, lambda: labels(footer) == ["Resume"], "the keys of now")
        assert footer.looks == looks + 1 and drawn(footer) == "r Resume"
        footer.call_next(change, True)
        await until(pilot, lambda: labels(footer) == ["Stop", "Resume"], "both again")


class Roomy(Screen[None]):
    BINDINGS = [("s", "stop", "Stop"), ("escape", "close", "Close")]  # noqa: RUF012

    def compose(self) -> ComposeResult:
        yield FittingFooter(show_command_palette=False, compact=False)


async def test_the_blanks_around_keys_go_before_a_key_is_cut():
    app: App[None] = App()
    async with app.run_test(size=(80, 6)) as pilot:
        await app.push_screen(Roomy())
        footer = app.screen.query_one(FittingFooter)
        await until(pilot, lambda: drawn(footer) == " s Stop  esc Close", "with blanks")
        await pilot.resize_terminal(17, 6)
        await until(pilot, lambda: drawn(footer) == "s Stop esc Close", "without")
        await pilot.hover(footer, offset=(8, 0))
        assert footer._hovered == "escape"


class Typing(Screen[None]):
    BINDINGS = bindings("app.palette")

    def compose(self) -> ComposeResult:
        yield Button()
        yield Input()
        yield FittingFooter()


async def test_the_palette_has_the_key_that_opens_it_where_one_is():
    app: App[None] = App()
    async with app.run_test() as pilot:
        await app.push_screen(Typing())
        footer = app.screen.query_one(FittingFooter)
        await until(pilot, lambda: [o.shown_key for o in footer.shown] == [":"], "a colon")
        await pilot.press("tab")
        await until(pilot, lambda: [o.shown_key for o in footer.shown] == ["^P"], "what a text does not take")


async def test_it_follows_the_width_of_the_terminal():
    app: App[None] = App()
    async with app.run_test(size=(80, 6)) as pilot:
        screen = Two()
        await app.push_screen(screen)
        footer = screen.query_one(Counted)
        await until(pilot, lambda: drawn(footer) == "s Stop r Resume", "both")
        await pilot.resize_terminal(12, 6)
        await until(pilot, lambda: footer.size.width == 12 and drawn(footer) == "r Resume", "what cannot be spared")
        await pilot.resize_terminal(80, 6)
        await until(pilot, lambda: footer.size.width == 80 and drawn(footer) == "s Stop r Resume", "both again")


class Wide(Screen[None]):
    BINDINGS = [  # noqa: RUF012
        Binding("ctrl+y", "redo", "Redo", id="redo", show=False),
        Binding("b", "copy", "Copy", id="copy", show=False),
        Binding("l", "log", "Log", id="log", show=False),
        Binding("s", "stop", "Stop", id="stop"),
    ]
    can_redo = True

    def compose(self) -> ComposeResult:
        yield Counted(spare=["stop"], more=["log", "redo"])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.can_redo if action == "redo" else True


async def test_room_that_is_left_has_more_keys_the_wanted_ones_in_their_order():
    app: App[None] = App()
    async with app.run_test(size=(80, 6)) as pilot:
        screen = Wide()
        await app.push_screen(screen)
        footer = screen.query_one(Counted)
        await until(pilot, lambda: drawn(footer).startswith("s Stop l Log ^Y Redo  "), "all that is wanted")
        assert drawn(footer).endswith("▏^P Palette")
        await pilot.resize_terminal(26, 6)
        await until(
            pilot, lambda: drawn(footer) == "s Stop l Log  ▏^P Palette", "the first alone, and the palette's name"
        )
        await pilot.resize_terminal(10, 6)
        await until(pilot, lambda: drawn(footer) == "     ▏^P", "none in the room of one that was left out")
        await pilot.resize_terminal(80, 6)
        screen.can_redo = False
        screen.refresh_bindings()
        await until(pilot, lambda: labels(footer) == ["Stop", "Log", "Palette"], "what can be done")


async def test_the_palette_goes_without_its_name_before_any_key_does():
    app: App[None] = App()
    async with app.run_test(size=(80, 24)) as pilot:
        await app.push_screen(Typing())
        footer = app.screen.query_one(FittingFooter)
        await until(pilot, lambda: drawn(footer).endswith("▏: Palette"), "its name")
        await pilot.resize_terminal(6, 24)
        await until(pilot, lambda: drawn(footer) == "  ▏:", "its key")
        await pilot.hover(footer, offset=(3, 0))
        assert footer._hovered == "colon"


async def test_a_key_is_clicked_where_it_can_be_taken():
    app: App[None] = App()
    async with app.run_test(size=(80, 6)) as pilot:
        screen = Two()
        await app.push_screen(screen)
        footer = screen.query_one(Counted)
        await until(pilot, lambda: drawn(footer) == "s Stop r Resume", "the keys")
        await pilot.hover(footer, offset=(2, 0))
        assert footer._hovered == "s"
        await pilot.click(footer, offset=(2, 0))
        await until(pilot, lambda: screen.stopped == 1, "the action")
        await pilot.hover(footer, offset=(40, 0))
        assert footer._hovered == ""
        screen.stops = None
        footer.bindings_changed(screen)
        await until(pilot, lambda: not footer.shown[0].enabled, "a key that cannot be taken now")
        await pilot.click(footer, offset=(2, 0))
        await pilot.pause()
        assert screen.stopped == 1
