"""What a key costs in the wizard: CPU of the thread that draws, from one key to the next.

    python -m benchmarks.wizard_keys [--clips N] [--keys N] [--where settings captions clips] [--profile]

Processor time, so that other programs count for little. What is reckoned and read meanwhile has threads of its own.
`--clips` makes a folder of so many links to one clip. The size is 80x24.
"""

import argparse
import asyncio
import cProfile
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual import events
from textual.pilot import Pilot

from tests.helpers.interface.wizard_pilot import at_step, make_base, scanned, screen_of, until, wizard
from tests.helpers.videos import write_clip
from wanlora_tui.draft.draft_store import Draft, DraftStore

PAUSE = 0.15  # seconds from key to key
Typing = Callable[[Pilot[None], int, bool], Awaitable[list[float]]]


PROFILE = cProfile.Profile()


async def _each(pilot: Pilot[None], keys: list[str], profile: bool) -> list[float]:
    """Milliseconds of CPU of the interface's thread for each key, with all that it sets off and what is drawn. Not by
    `pilot.press`, which asks every widget on the screen whether it is done."""
    out = []
    if profile:
        PROFILE.enable()
    for key in keys:
        begin = time.thread_time()
        pilot.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await asyncio.sleep(PAUSE)
        out.append((time.thread_time() - begin) * 1000)
    PROFILE.disable()
    return out


async def settings(pilot: Pilot[None], keys: int, profile: bool) -> list[float]:
    """Digits typed into training.steps, the panel of most fields."""
    await screen_of(pilot).go_to("settings", field="training.steps")
    await pilot.pause()
    return await _each(pilot, [str(i % 9 + 1) if i % 6 else "ctrl+u" for i in range(keys)], profile)


async def captions(pilot: Pilot[None], keys: int, profile: bool) -> list[float]:
    """Letters typed into the default caption."""
    await screen_of(pilot).go_to("captions", field="datasets[0].default_caption")
    await pilot.pause()
    return await _each(pilot, ["abcdefgh"[i % 8] for i in range(keys)], profile)


async def clips(pilot: Pilot[None], keys: int, profile: bool) -> list[float]:
    """The cursor in the table of clips."""
    await screen_of(pilot).go_to("clips")
    await until(pilot, lambda: screen_of(pilot).query("#clips"), "the table")
    return await _each(pilot, ["down" if i % 10 < 6 else "up" for i in range(keys)], profile)


WHERE: dict[str, Typing] = {"settings": settings, "captions": captions, "clips": clips}


async def measure(folder: Path, where: str, keys: int, profile: bool) -> list[float]:
    draft = folder / "draft.json"
    values = {"model.path": str(folder / "base")}
    DraftStore(draft).save(Draft(step="clips", kind="motion", folders=[str(folder / "clips")], values=values))
    async with wizard(draft) as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await scanned(pilot)
        await WHERE[where](pilot, 10, False)  # the first ones fill caches
        found = await WHERE[where](pilot, keys, profile)
        if profile:
            pstats.Stats(PROFILE, stream=sys.stderr).sort_stats("cumulative").print_stats(60)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--keys", type=int, default=60)
    parser.add_argument("--where", nargs="+", choices=list(WHERE), default=list(WHERE))
    parser.add_argument("--profile", action="store_true", help="say on stderr where the time goes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        make_base(folder / "base")
        write_clip(folder / "first.mp4", frames=48, fps=16.0, width=96, height=96)
        for i in range(args.clips):
            os.link(folder / "first.mp4", folder / "clips" / f"clip_{i:04}.mp4")
            (folder / "clips" / f"clip_{i:04}.txt").write_text(f"orbit {i} around the subject")
        os.chdir(folder)
        for where in args.where:
            times = asyncio.run(measure(folder, where, args.keys, args.profile))
            print(
                f"{where:<10} {args.clips} clips: median {statistics.median(times):.1f} ms a key, worst"
                f" {max(times):.1f} ms ({len(times)} keys)"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
