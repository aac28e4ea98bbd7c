"""What a key costs in the wizard with a folder of many clips: in tables and fields, leaving out, undo, between steps.

    python -m benchmarks.clip_keys [--clips N] [--folder FOLDER] [--times N] [--only WORD] [--profile] [--harness]

Writes the clips (5000) into FOLDER (a temporary one), runs the wizard on a pseudo-terminal of 100x30 with Textual's
driver, reads the folder as the wizard does, and presses each key 20 times, a third of a second apart. A key is posted
as the terminal's reader posts it; no test harness takes part. Prints, of the thread that draws, in milliseconds:

- frame: CPU from the key until its frame has gone to the terminal, the middle of all times, and the slowest
- felt: the same by the clock, the middle
- all: CPU until the next key, with what follows later: prices, findings and marks; the middle, and in how many frames

The floor is a key that nothing is bound to. `--harness` presses the keys as the tests do and as all results before
27 November 2026 were made: `Pilot.press` without a terminal, which asks each widget on the screen, again and again,
whether it is done, and writes no frame; `all` alone is of interest then, and holds no more than the key and its frame.
"""

import argparse
import asyncio
import cProfile
import fcntl
import os
import pstats
import pty
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from textual import events
from textual.pilot import Pilot

from tests.helpers.interface.wizard_pilot import WizardApp, at_step, scanned, screen_of, until
from tests.helpers.videos import write_clip
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.widgets.long_table import LongTable

SIZE = (100, 30)
APART = 0.33  # seconds from key to key: more than a change waits for another before it is reckoned
PROFILE = cProfile.Profile(time.thread_time)


@dataclass(frozen=True)
class Keys:
    """The first key of `keys` is measured; those behind it go back to where it can be pressed again."""

    name: str
    keys: tuple[str, ...]
    step: str = "clips"
    field: str = ""  # "": the table of the step has the focus


MEASURED = [
    Keys("floor: a key without a meaning", ("y",)),
    Keys("clips: down", ("down",)),
    Keys("clips: end", ("end", "home")),
    Keys("clips: page down", ("pagedown",)),
    Keys("clips: x, leave out", ("x", "down")),
    Keys("clips: u, undo of it", ("u",)),
    Keys("clips: x, take in", ("x", "x")),
    Keys("clips: a digit of the frames", ("1", "backspace"), field="datasets[0].num_frames"),
    Keys("clips: backspace behind it", ("backspace", "1"), field="datasets[0].num_frames"),
    Keys("captions: a letter of the name", ("a",), "captions", "job.name"),
    Keys("captions: a letter of the trigger", ("b",), "captions", "job.trigger"),
    Keys("captions: a letter of the default caption", ("c",), "captions", "datasets[0].default_caption"),
    Keys("captions: a digit of the dropout", ("1", "backspace"), "captions", "datasets[0].caption_dropout"),
    Keys("captions: down", ("down",), "captions"),
    Keys("captions: page down", ("pagedown",), "captions"),
    Keys("captions: x, leave out", ("x", "down"), "captions"),
    Keys("captions: Enter, its caption", ("enter", "escape"), "captions"),
    Keys("captions: t, add [trigger]", ("t", "escape"), "captions"),
    Keys("settings: a digit of the steps", ("1", "backspace"), "settings", "training.steps"),
    Keys("settings: a letter of the base", ("a",), "settings", "model.path"),
    Keys("steps: clips to captions", ("ctrl+g", "ctrl+d")),
    Keys("steps: captions to clips", ("ctrl+d", "ctrl+g"), "captions"),
    Keys("steps: captions to settings", ("ctrl+g", "ctrl+d"), "captions"),
    Keys("steps: settings to prompts", ("ctrl+g", "ctrl+d"), "settings"),
]


@dataclass
class Cost:
    """Of one key, in milliseconds."""

    frame: float
    felt: float
    all: float
    frames: int


def many_clips(folder: Path, number: int) -> None:
    """Clips of a few frames, each with other bytes behind it, and a caption each."""
    folder.mkdir(parents=True, exist_ok=True)
    one = write_clip(folder / "clip_00000.mp4", frames=5, fps=16.0, width=64, height=48).read_bytes()
    for i in range(number):
        box = f"{i:08}".encode()
        (folder / f"clip_{i:05}.mp4").write_bytes(one + (8 + len(box)).to_bytes(4) + b"free" + box)
        (folder / f"clip_{i:05}.txt").write_text(f"orbit {i} degrees around the subject")


class TimedApp(WizardApp):
    """The wizard, noting when each frame has gone to the terminal."""

    def __init__(self, draft: Path) -> None:
        super().__init__(draft)
        self.drawn: list[tuple[float, float]] = []  # CPU of this thread, and the clock

    def _handle_exception(self, error: Exception) -> None:
        say("".join(traceback.format_exception(error)))
        super()._handle_exception(error)

    def _display(self, screen: Any, renderable: Any) -> None:
        super()._display(screen, renderable)
        if renderable is not None:
            self.drawn.append((time.thread_time(), time.perf_counter()))


async def pressed(pilot: Pilot[None], app: TimedApp, key: str, *, harness: bool) -> Cost:
    app.drawn.clear()
    cpu, clock = time.thread_time(), time.perf_counter()
    if harness:
        await pilot.press(key)
        await pilot.pause()
    else:
        app.post_message(events.Key(key, key if len(key) == 1 else None))
        await asyncio.sleep(APART)
        while app.is_taking:  # a machine that is busy with other things
            await asyncio.sleep(APART)
    used = 1000 * (time.thread_time() - cpu)
    first = app.drawn[0] if app.drawn else (cpu, clock)
    return Cost(1000 * (first[0] - cpu), 1000 * (first[1] - clock), used, len(app.drawn))


def say(text: str) -> None:
    os.write(OUT, f"{text}\n".encode())


OUT = 1  # where results go, as the terminal is drawn on


async def measure(pilot: Pilot[None], keys: list[Keys], times: int, *, profile: bool, harness: bool) -> None:
    app = pilot.app
    assert isinstance(app, TimedApp)
    await until(pilot, lambda: app.screen.is_mounted and len(app.screen_stack) > 2, "the draft")
    await pilot.press("enter")
    await at_step(pilot, "clips")
    await scanned(pilot)
    screen = screen_of(pilot)
    screen.end_looks()  # which clips look alike is not waited for
    for each in keys:
        await screen.go_to(each.step, field=each.field)
        await at_step(pilot, each.step)
        if not each.field:
            for table in screen.query(LongTable):
                table.focus()
        await asyncio.sleep(1)
        await pressed(pilot, app, each.keys[0], harness=harness)  # the first fills caches
        for key in each.keys[1:]:
            await pressed(pilot, app, key, harness=harness)
        found = []
        for _ in range(times):
            if profile:
                PROFILE.enable()
            found.append(await pressed(pilot, app, each.keys[0], harness=harness))
            PROFILE.disable()
            for key in each.keys[1:]:
                await pressed(pilot, app, key, harness=harness)
        frame, felt, used = (statistics.median(getattr(c, name) for c in found) for name in ("frame", "felt", "all"))
        say(
            f"{each.name:42} {frame:7.1f} {max(c.frame for c in found):7.1f} {felt:7.1f} {used:7.1f}"
            f" {statistics.mean(c.frames for c in found):7.1f}"
        )
    app.exit()


@contextmanager
def terminal() -> Iterator[None]:
    """A pseudo-terminal that all of this process is on meanwhile, read to the end by a thread."""
    global OUT
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", SIZE[1], SIZE[0], 0, 0))
    OUT, error = os.dup(1), os.dup(2)
    standard_in = os.dup(0)
    for fd in (0, 1, 2):
        os.dup2(inner, fd)

    def read() -> None:
        try:
            while os.read(outer, 65536):
                pass
        except OSError:
            pass

    threading.Thread(target=read, daemon=True).start()
    try:
        yield
    finally:
        for fd, was in ((0, standard_in), (1, OUT), (2, error)):
            os.dup2(was, fd)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--folder", type=Path, help="where the clips are, or come to lie")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", default="", help="those with this word in their name")
    parser.add_argument("--profile", action="store_true", help="say where the time goes of what is measured")
    parser.add_argument("--harness", action="store_true", help="pressed as the tests do")
    args = parser.parse_args()
    keys = [each for each in MEASURED if args.only in each.name]
    with tempfile.TemporaryDirectory(prefix="wl") as temporary:
        clips = Path(args.folder or temporary, "clips").absolute()
        if not clips.is_dir():
            many_clips(clips, args.clips)
        draft = Path(temporary, "draft.json")
        DraftStore(draft).save(Draft(step="clips", kind="motion", folders=[str(clips)]))
        os.chdir(temporary)
        pilot = partial(measure, keys=keys, times=args.times, profile=args.profile, harness=args.harness)
        with nullcontext() if args.harness else terminal():
            say(f"{'':42} {'frame':>7} {'slowest':>7} {'felt':>7} {'all':>7} {'frames':>7}")
            app = TimedApp(draft)
            asyncio.run(app.run_async(headless=args.harness, size=SIZE, auto_pilot=pilot))
        if args.profile:
            pstats.Stats(PROFILE, stream=sys.stdout).sort_stats("cumulative").print_stats(80)
            pstats.Stats(PROFILE, stream=sys.stdout).sort_stats("tottime").print_stats(40)
    return app.return_code or 0


if __name__ == "__main__":
    sys.exit(main())
