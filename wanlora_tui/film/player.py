"""Plays what its owner, a screen or a widget, shows: all films at one position, while somebody can see them."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from textual.app import ScreenStackError
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget

from wanlora_tui.film.playhead import Playhead
from wanlora_tui.film.position_bar import PositionBar
from wanlora_tui.terminal.pictures import is_behind

# Both come with numpy and PIL, a fifth of the time until a dashboard is seen: not before there is a film to decode.
if TYPE_CHECKING:
    from wanlora_tui.film.decoding import Reel
    from wanlora_tui.film.projector import Projector

SHARE = 0.5  # of one core, for drawing: what does not fit is left out
QUICKEST = 1 / 30  # seconds between two frames
PLAYING = frozenset({"play", "frame", "to_frame"})  # the actions that need a film
HELD_SECONDS = 0.25  # between two looks whether somebody can see it again


class MoreFrames(Message):
    """A film has been decoded further."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, MoreFrames)


class Shows(Protocol):
    """Something with films in it."""

    def aim(self, projector: "Projector", *, film: bool) -> None:
        """Look for the files, and have the films decoded if they are wanted."""

    def draw(self, seconds: float) -> None:
        """What is seen at a position."""

    @property
    def reels(self) -> Iterable["Reel"]: ...


class Player:
    """`shown` gives what is on the owner at present. The owner hands on MoreFrames to `more`, and ends it with
    `close`."""

    def __init__(
        self,
        owner: Screen[object] | Widget,
        shown: Callable[[], Iterable[Shows]],
        bar: Callable[[], PositionBar],
        playhead: Playhead | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.playhead = playhead or Playhead(clock)
        self._owner, self._shown, self._bar = owner, shown, bar
        self._timer: Timer | None = None
        self._due = 0.0
        self.film = True  # whether there is one to play, as far as is known: nobody looks before it is to play
        self._cpu, self._wall = time.thread_time(), time.monotonic()

    @cached_property
    def _projector(self) -> "Projector":
        from wanlora_tui.film.projector import Projector

        return Projector(self._told)

    def _told(self) -> None:
        """Called in the projector's thread."""
        with suppress(ScreenStackError, RuntimeError):  # the screens are being closed
            self._owner.post_message(MoreFrames())

    @property
    def seen(self) -> bool:
        """Whether somebody can look: not under another screen, not in a terminal that is in the background."""
        owner = self._owner
        try:
            on_top = owner.app.screen is owner.screen
        except ScreenStackError:
            return False
        return on_top and owner.app.app_focus and (isinstance(owner, Screen) or owner.is_on_screen)

    @property
    def _played_elsewhere(self) -> bool:
        """Whether the screen on top goes on with the same films."""
        with suppress(ScreenStackError):
            on_top = self._owner.app.screen
            return isinstance(on_top, Plays) and on_top.player is not self and on_top.player.playhead is self.playhead
        return False

    # --- what is shown -----------------------------------------------------------------------------------------

    def aim(self) -> None:
        """After a change of what is shown, of its files, or of its size."""
        if not self._owner.display:  # hidden, or being taken down
            return
        shown = list(self._shown())
        if not shown and "_projector" not in vars(self):
            return
        for one in shown:
            one.aim(self._projector, film=self.playhead.moved)
        self._projector.only([reel for one in shown for reel in one.reels])
        self.more()

    def more(self) -> None:
        """More of the films is there."""
        if not self._owner.display:
            return
        reels = [reel for one in self._shown() for reel in one.reels if reel.duration]
        if reels and self.playhead.moved:
            longest = max(reels, key=lambda reel: reel.duration)
            self.playhead.load(longest.times, longest.duration)
        self.draw()

    def draw(self) -> None:
        if not self._owner.display:
            return
        seconds = self.playhead.seconds
        for one in self._shown():
            one.draw(seconds)
        self._look_for_film()
        self._bar().show(self.playhead, film=self.film)
        if self._timer is None and self.playhead.playing:
            self._schedule(self.playhead.wait)

    def _look_for_film(self) -> None:
        """One that is missing or broken is looked for again and again: until that is known, it is as it was."""
        reels = [reel for one in self._shown() for reel in one.reels]
        known = self.film
        if not self.playhead.moved or any(reel.frames and reel.duration for reel in reels):
            self.film = True
        elif all(reel.whole for reel in reels):
            self.film = False
        if self.film != known:
            self._owner.screen.refresh_bindings()

    # --- keys and mouse ----------------------------------------------------------------------------------------

    def toggle(self) -> None:
        self._change(self.playhead.toggle)

    def step(self, by: int) -> None:
        self._change(lambda: self.playhead.step(by))

    def seek(self, frame: int) -> None:
        self._change(lambda: self.playhead.seek(frame))

    def stop(self) -> None:
        """Back to the posters."""
        self._change(self.playhead.reset)

    def _change(self, change: Callable[[], None]) -> None:
        moved = self.playhead.moved
        change()
        if self.playhead.moved == moved:
            self.draw()
        else:
            self.aim()
            self._owner.screen.refresh_bindings()  # there is something to go back from, or no more

    # --- the clock ---------------------------------------------------------------------------------------------

    def _schedule(self, seconds: float) -> None:
        """A timer that goes on and on: of one for once Textual skips the only time when the machine is busy."""
        self._due = time.monotonic() + seconds
        if self._timer is None:
            self._timer = self._owner.set_interval(QUICKEST, self._tick)

    def _tick(self) -> None:
        if not self.playhead.playing:
            if self._timer is not None:
                self._timer.stop()
            self._timer = None
            return
        if time.monotonic() < self._due:
            return
        if not self.seen:
            if not self._played_elsewhere:
                self.playhead.hold()
            self._schedule(HELD_SECONDS)
            return
        self.playhead.run_on()
        if not self.film:
            self._schedule(HELD_SECONDS)
            return
        cpu, wall = time.thread_time(), time.monotonic()
        over = (cpu - self._cpu) / SHARE - (wall - self._wall)
        if over > 0:  # the last frame took longer to draw than it was shown
            self._schedule(over)
            return
        if is_behind(self._owner.app):
            self._schedule(QUICKEST)
            return
        self._cpu, self._wall = cpu, wall
        self.draw()
        self._schedule(self.playhead.wait)

    def close(self) -> None:
        self.playhead.hold()
        if self._timer is not None:
            self._timer.stop()
        if "_projector" in vars(self):
            self._projector.close()


class Plays:
    """The actions of an owner of a player, and its messages. What plays is offered where there is a film."""

    player: Player

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.player.film or action not in PLAYING

    def action_play(self) -> None:
        self.player.toggle()

    def action_frame(self, by: int) -> None:
        self.player.step(by)

    def action_to_frame(self, frame: int) -> None:
        self.player.seek(frame)

    def on_more_frames(self, event: MoreFrames) -> None:
        event.stop()
        self.player.more()

    def on_position_bar_sought(self, event: PositionBar.Sought) -> None:
        event.stop()
        self.player.seek(event.frame)

    def on_position_bar_stepped(self, event: PositionBar.Stepped) -> None:
        event.stop()
        self.player.step(event.by)

    def on_position_bar_toggled(self, event: PositionBar.Toggled) -> None:
        event.stop()
        self.player.toggle()

    def on_film_pane_stepped(self, event: Message) -> None:
        event.stop()
        self.player.step(event.by)  # type: ignore[attr-defined]

    def on_film_pane_resized(self, event: Message) -> None:
        event.stop()
        self.player.aim()

    def on_unmount(self) -> None:
        self.player.close()
