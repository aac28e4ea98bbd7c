"""How pictures of the screens are taken: SVG files that `make snapshots` draws anew after a wanted change, so that
their diff shows what it changed.

All that a picture shows is fixed here: clock, time zone, home, folders. A state of a screen is walked to, and then
the terminal is resized for its pictures. `make test` draws each state at 80x24, and one of each screen at all sizes.
"""

import fcntl
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from pytest_textual_snapshot import SVGImageExtension
from syrupy.assertion import SnapshotAssertion
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.conftest import is_idle
from wanlora_tui.film.sheet_view import SheetView
from wanlora_tui.widgets import redraw_throttle

SIZES = ((80, 24), (100, 30), (160, 48))
SMALL, LARGER = SIZES[:1], SIZES[1:]
PLAIN = "-without-colour"  # ends the name of a case that is drawn so
NOW = 1_790_007_200.0  # two hours after the runs that tests write began
Sizes = tuple[tuple[int, int], ...]
Picture = Callable[..., Awaitable[None]]


def at_sizes(
    states: Iterable[str], whole: Collection[str], larger: Sizes = LARGER, plain: Collection[str] = ()
) -> list[ParameterSet]:
    """Each state with sizes: those of `whole` with all, the others with 80x24, and with the larger ones as a case of
    `make thorough` alone. Those of `plain` without colour as well, the same way; of the others `make thorough` draws
    80x24 without colour."""
    cases = []
    rare = pytest.mark.thorough
    for state in states:
        for end in ("", PLAIN) if state in plain else ("",):
            cases.append(pytest.param(state, SMALL + larger if state in whole else SMALL, id=f"{state}{end}"))
            if state not in whole:
                cases.append(pytest.param(state, larger, id=f"{state}-larger{end}", marks=rare))
        if state not in plain:
            cases.append(pytest.param(state, SMALL, id=f"{state}{PLAIN}", marks=rare))
    return cases


@pytest.fixture
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One whose path is the same in every picture, so it is one test's at a time; it is the home and the working
    folder. The clock stands, nothing is animated, and no drawing is put off."""
    with Path("/tmp/wanlora-snapshots.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = Path("/tmp/wanlora-snapshots")
        shutil.rmtree(found, ignore_errors=True)
        (found / "home").mkdir(parents=True)
        for name in ("NO_COLOR", "TEXTUAL_THEME", "HF_HOME", "SSH_CONNECTION", "SSH_TTY", "DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        if request.node.name.endswith(f"{PLAIN}]"):
            monkeypatch.setenv("NO_COLOR", "1")
        for name in ("CACHE", "CONFIG", "DATA", "STATE"):
            monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)
        monkeypatch.setenv("HOME", str(found / "home"))
        monkeypatch.chdir(found)
        monkeypatch.setenv("TZ", "UTC")
        time.tzset()
        monkeypatch.setattr(time, "time", lambda: NOW)
        monkeypatch.setattr("textual.constants.TEXTUAL_ANIMATIONS", "none")
        monkeypatch.setattr(redraw_throttle, "SECONDS", 0.0)
        yield found
        monkeypatch.undo()
        time.tzset()
        shutil.rmtree(found)


def _is_busy(pilot: Pilot[None]) -> bool:
    """Whether something is still read or decoded in a thread, or a widget has something to do, also behind a dialog: on
    a busy machine its next message may come only after several looks at a screen that keeps still meanwhile."""
    app = pilot.app
    pumps = [pump for screen in app.screen_stack for pump in screen.walk_children(with_self=True)]
    if not all(is_idle(pump) for pump in pumps):
        return True
    if any(
        isinstance(value, redraw_throttle.Throttle) and value._waiting
        for pump in pumps
        for value in vars(pump).values()
    ):
        return True  # something has changed, and is drawn in a moment
    reading = any(w._thread_worker and not w.is_finished and w.group != "trainer's output" for w in app.workers)
    return reading or any(not reel.whole for sheet in app.screen.query(SheetView) for reel in sheet.reels)


async def still(pilot: Pilot[None], ready: Callable[[], object] = lambda: True) -> str:
    """The screen as SVG, once nothing on it changes any more; without a blinking cursor."""
    app, seen = pilot.app, []  # type: ignore[var-annotated]

    def look() -> bool:
        for field in app.screen.query(Input):
            field.cursor_blink = False
        for area in app.screen.query(TextArea):
            if area.cursor_blink:
                area.cursor_blink = False
                area._line_cache.clear()  # it keeps the line as it was drawn between two blinks
                area.refresh()
        if _is_busy(pilot) or not ready():
            seen.clear()
            return False
        seen.append([screen._compositor.render_strips() for screen in app.screen_stack])
        return len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]

    for _ in range(3):
        await pilot.pause()
    await until(pilot, look, "a screen that keeps still")
    return app.export_screenshot(title="wanlora", simplify=True)


@pytest.fixture
def picture(snapshot: SnapshotAssertion, folder: Path, tmp_path: Path) -> Picture:
    """`await picture(pilot, sizes=..., ready=...)`: the screen at each size is as in its picture."""
    shots = snapshot.use_extension(SVGImageExtension)

    async def take(pilot: Pilot[None], sizes: Sizes = SIZES, ready: Callable[[], object] = lambda: True) -> None:
        differ = []
        for width, height in sizes:
            if pilot.app.size != (width, height):
                await pilot.resize_terminal(width, height)
            drawn, name = await still(pilot, ready), f"{width}x{height}"
            if not shots(name=name) == drawn:  # noqa: SIM201  (a snapshot only knows how to be equal)
                differ.append(tmp_path / f"{name}.svg")
                differ[-1].write_text(drawn)
        assert not differ, f"the screen is not as in its picture: look at {', '.join(map(str, differ))}"

    return take
