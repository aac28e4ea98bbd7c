"""What a key costs in the screens of runs at their extremes: CPU of the thread that draws, from one key to the next.

    python -m benchmarks.screen_keys [--times N] [--only WORD] [--profile]

500 jobs, the dashboard of a run of 2400 noisy steps, its log, its previews side by side and all of them small; each at
160x48, without a terminal. Processor time, so that other programs count for little; other code compares in turns, from
its own folder, in the same minutes. Prints the middle and the worst of all presses, with all that a key sets off until
the next one.
"""

import argparse
import asyncio
import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from textual import events
from textual.app import App
from textual.pilot import Pilot
from textual_image.widget import HalfcellImage

from tests.helpers import recorded_run
from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, five_hundred
from wanlora_tui.screenshot import RecordedApp, load_run
from wanlora_tui.widgets.key_order import KeysInOrder

SIZE = (160, 48)
PAUSE = 0.25  # seconds from key to key: more than lies between two drawings of one screen
SETTLE = 1.5  # seconds until a screen that was opened has drawn all of itself
PROFILE = cProfile.Profile(time.thread_time)


class Jobs(JobsApp, KeysInOrder):
    """As the program is, which takes one key at a time."""


class Run(RecordedApp, KeysInOrder):
    """The same of a run."""

    CSS_PATH = JobsApp.CSS_PATH


@dataclass(frozen=True)
class Keys:
    """The first key of `keys` is measured; those behind it go back to where it can be pressed again."""

    name: str
    keys: tuple[str, ...]
    before: tuple[str, ...] = ()  # what leads there


MEASURED = [
    Keys("jobs: down", ("down",)),
    Keys("jobs: page down", ("pagedown",)),
    Keys("jobs: end", ("end", "home")),
    Keys("jobs: o, another order", ("o",)),
    Keys("jobs: a letter of the filter", ("v", "backspace"), ("slash",)),
    Keys("jobs: a letter that leaves few", ("9", "backspace"), ("slash", "4")),
    Keys("jobs: backspace behind it", ("backspace", "9"), ("slash", "4", "9")),
    Keys("dashboard: plus, zoom", ("plus", "0")),
    Keys("dashboard: 0, all steps", ("0", "plus"), ("plus",)),
    Keys("dashboard: left, the cursor", ("left",)),
    Keys("dashboard: pan", ("less_than_sign", "greater_than_sign"), ("plus", "plus", "plus")),
    Keys("dashboard: g, log y", ("g",)),
    Keys("dashboard: right bracket, smoother", ("right_square_bracket", "left_square_bracket")),
    Keys("dashboard: tab", ("tab",)),
    Keys("log: up", ("up",), ("L",)),
    Keys("log: page up", ("pageup", "pagedown"), ("L",)),
    Keys("log: a letter of the search", ("a",), ("L", "slash")),
    Keys("log: n, the next match", ("n",), ("L", "slash", "s", "t", "e", "p", "enter")),
    Keys("log: f, another kind", ("f",), ("L",)),
    Keys("compare: left", ("left",), ("c",)),
    Keys("compare: down", ("down",), ("c",)),
    Keys("sheet: left", ("left",), ("t",)),
    Keys("sheet: down", ("down",), ("t",)),
]


async def pressed(pilot: Pilot[None], key: str) -> float:
    """Milliseconds. Posted as the terminal's reader does, and not by `pilot.press`, which asks all widgets whether they
    are done."""
    names = {
        "slash": "/",
        "less_than_sign": "<",
        "greater_than_sign": ">",
        "plus": "+",
        "left_square_bracket": "[",
        "right_square_bracket": "]",
    }
    begin = time.thread_time()
    pilot.app.post_message(events.Key(key, key if len(key) == 1 else names.get(key)))
    await asyncio.sleep(PAUSE)
    return (time.thread_time() - begin) * 1000


async def measure(app: App[None], keys: Keys, times: int, profile: bool) -> list[float]:
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: len(app.screen_stack) > 1 and app.screen.is_mounted, "the screen")
        await asyncio.sleep(SETTLE)
        for key in keys.before:
            await pressed(pilot, key)
        await asyncio.sleep(SETTLE)
        for key in (*keys.keys, *keys.keys):  # the first ones fill caches
            await pressed(pilot, key)
        found = []
        for _ in range(times):
            if profile:
                PROFILE.enable()
            found.append(await pressed(pilot, keys.keys[0]))
            PROFILE.disable()
            for key in keys.keys[1:]:
                await pressed(pilot, key)
        return found


def jobs_app() -> App[None]:
    return Jobs(list(five_hundred().jobs.records.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=12)
    parser.add_argument("--only", default="", help="those with this word in their name")
    parser.add_argument("--profile", action="store_true", help="say where the time goes of what is measured")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        run = load_run(recorded_run.write(Path(name)) / "events.jsonl")
        print(f"{'':40} {'middle':>7} {'worst':>7}")
        for keys in MEASURED:
            if args.only in keys.name:
                make: Callable[[], App[None]] = (
                    jobs_app if keys.name.startswith("jobs") else lambda: Run(run, HalfcellImage)
                )
                found = asyncio.run(measure(make(), keys, args.times, args.profile))
                print(f"{keys.name:40} {statistics.median(found):7.1f} {max(found):7.1f}", flush=True)
    if args.profile:
        for order in ("cumulative", "tottime"):
            pstats.Stats(PROFILE, stream=sys.stdout).sort_stats(order).print_stats(60)
    return 0


if __name__ == "__main__":
    sys.exit(main())
