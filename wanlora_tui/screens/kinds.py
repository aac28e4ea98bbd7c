"""What several screens are, and what the app must know of those that it imports only when they are opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from textual.screen import Screen

from wanlora_tui.actions import needs_daemon
from wanlora_tui.feeds.run_feed import ShownRun


@runtime_checkable
class Looks(Protocol):
    """A screen that reads clips: the wizard."""

    @property
    def looking(self) -> bool: ...

    def end_looks(self) -> None: ...


@runtime_checkable
class OverARun(Protocol):
    """A screen about one run: the dashboard."""

    run: ShownRun

    @property
    def is_over(self) -> bool: ...


class AsksDaemon(Screen[None]):
    """A screen some of whose actions need the daemon: these are offered while it answers."""

    _coming = 0

    @contextmanager
    def coming(self) -> Iterator[None]:
        """While that is read or asked for which a key opens: what is typed behind the key is meant for it."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    @property
    def takes_keys(self) -> bool:
        return not self._coming

    @property
    def daemon_answers(self) -> bool:
        raise NotImplementedError

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.daemon_answers or not needs_daemon(action)
