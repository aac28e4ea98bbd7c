"""What the app must know of screens that it imports only when they are opened."""

from typing import Protocol, runtime_checkable

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
