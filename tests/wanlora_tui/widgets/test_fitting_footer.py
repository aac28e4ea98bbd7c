"""The footer when its screen is taken down between a change of its keys and the drawing of them."""

from textual.app import App, ComposeResult
from textual.screen import Screen
from textual.widgets._footer import FooterKey

from tests.helpers.interface.wizard_pilot import until
from wanlora_tui.widgets.fitting_footer import FittingFooter


async def test_a_footer_whose_screen_is_gone_is_not_made_anew():
    app: App[None] = App()
    async with app.run_test() as pilot:
        screen = Screen[None]()
        footer = FittingFooter()
        await app.push_screen(screen)
        await screen.mount(footer)
        await pilot.pause()
        await app.pop_screen()
        assert not footer.is_attached
        await footer.recompose()


class Counted(FittingFooter):
    """How often its keys were made."""

    made = 0

    def compose(self) -> ComposeResult:
        self.made += 1
        yield from super().compose()


class Two(Screen[None]):
    BINDINGS = [("s", "stop", "Stop"), ("r", "resume", "Resume")]  # noqa: RUF012
    stops = True

    def compose(self) -> ComposeResult:
        yield Counted(show_command_palette=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return action != "stop" or self.stops


def keys(footer: FittingFooter) -> list[str]:
    return [key.description for key in footer.query(FooterKey)]


async def test_what_is_asked_for_twice_before_it_is_drawn_is_drawn_once():
    """Each change of keys costs as much as a frame; at a start there are several of them at once."""
    app: App[None] = App()
    async with app.run_test() as pilot:
        screen = Two()
        await app.push_screen(screen)
        footer = screen.query_one(Counted)
        await until(pilot, lambda: keys(footer) == ["Stop", "Resume"], "the keys")
        made = footer.made

        def change(*stops: bool) -> None:
            for screen.stops in stops:
                footer.bindings_changed(screen)

        footer.call_next(change, False, True, False)
        await until(pilot, lambda: keys(footer) == ["Resume"], "the keys of now")
        assert footer.made == made + 1
        footer.call_next(change, True)
        await until(pilot, lambda: keys(footer) == ["Stop", "Resume"], "both again")
