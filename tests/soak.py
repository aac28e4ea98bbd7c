"""`make soak`: a real daemon and fake trainers for ten minutes, while the daemon and its clients are killed and stopped
at random and its sockets are fed with nonsense; at the end everything that was promised is counted.

Three faults at a time: `kill -9` of the daemon, a client or a trainer; a pause of the daemon, a client or a trainer;
frames that are no messages. Promised: every event of every run once and in order, for each follower and in each file;
one effect per request, however often it was sent; never two trainers of one job; nothing left running; memory that does
not grow. The choices come from the seed alone; what a fault meets does not. Exit code 0: all kept. 1: a promise broken.
It always ends within its minutes, the last of which are for the jobs that are left. What was counted until then is
printed every half minute, and at the end whatever ends it, a signal too.

usage: python -m tests.soak [--minutes 10] [--seed 0] [--kills N] [--processes 1]
With --kills it ends after so many kills. With --processes so many soaks share them, side by side, and are added up.
"""

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import msgspec
from msgspec import Struct

from presets.atomic_file import write_file
from tests.helpers import ROOT
from tests.helpers.soaking import Soak, run

SAY_EVERY = 30.0  # seconds between two lines of what was counted so far
TELL_EVERY = 5.0  # the same of one of several
ENDING = 20.0  # seconds that one of several has for ending once it is told to
DEATH_SIGNAL = ROOT / "wanlora_tui/remote/death_signal.py"


class Report(Struct):
    """What one soak came to, for whoever adds several up."""

    counts: dict[str, int]
    broken: list[str]
    worst_answer: float  # seconds
    early: str  # what ended it before it had looked at everything; "" for nothing
    dir: str
    memory: str = ""

    def so_far(self, seconds: float) -> str:
        """One line."""
        kills = sum(n for what, n in self.counts.items() if what.startswith("kills"))
        frames, promises = (self.counts.get(what, 0) for what in ("frames of nonsense", "promises looked at"))
        return (
            f"{seconds / 60:5.1f} min: {kills:,} kills, {frames:,} frames of nonsense, {promises:,} promises looked at,"
            f" {len(self.broken)} broken"
        )

    def say(self) -> int:
        """Print it. Gives the exit code."""
        for what, number in sorted(self.counts.items()):
            print(f"{number:9,} {what}")
        print(f"slowest look at all jobs with a fault before it: {self.worst_answer:.1f} s")
        if self.memory:
            print(self.memory)
        for what in self.broken:
            print(f"BROKEN: {what}")
        if self.broken:
            print(f"FAIL: {len(self.broken)} broken; see {self.dir}")
        elif self.early:
            print(f"ENDED EARLY, by {self.early}: every promise that was looked at is kept")
        else:
            print("PASS: every promise is kept")
        return 1 if self.broken else 0


def soak_once(
    minutes: float, seed: int, kills: int, tell: Callable[[Report], None], every: float = SAY_EVERY
) -> Report:
    """One daemon's. Whatever ends it, what was counted so far is told. `tell`: is given that `every` so many seconds,
    too."""
    soak = Soak(Path(tempfile.mkdtemp(prefix="wlsoak", dir="/tmp")), random.Random(seed))

    def report() -> Report:
        return Report(dict(soak.counts), list(soak.broken), soak.worst_answer, soak.early, str(soak.dir), soak.grown)

    def end(number: int, frame: FrameType | None) -> None:
        soak.end_early(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    over = threading.Timer(60 * minutes, lambda: soak.end_early(f"its minutes, with {soak.left} jobs not done"))
    over.daemon = True
    over.start()

    async def all_of_it() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.create_task(run(soak, minutes, kills))

        def cancel() -> None:
            with suppress(RuntimeError):  # it has ended at this moment
                loop.call_soon_threadsafe(task.cancel)

        soak.cancel, next_word = cancel, time.monotonic() + every
        while not (await asyncio.wait([task], timeout=1.0))[0]:
            if soak.early and not task.cancelling():  # that came before there was anything to cancel
                task.cancel()
            if time.monotonic() >= next_word:
                next_word = time.monotonic() + every
                tell(report())
        if not (task.cancelled() and soak.early):
            task.result()

    try:
        asyncio.run(all_of_it())
    except (Exception, SystemExit) as e:
        traceback.print_exc()
        if not soak.early:  # what is amiss while it is ended is no promise broken
            soak.early = f"{type(e).__name__} {e}"
            soak.broken.append(f"the soak did not come to its end: {soak.early}")
    finally:
        over.cancel()
        soak.end_all()
    if not soak.broken:
        shutil.rmtree(soak.dir, ignore_errors=True)
    return report()


def side_by_side(processes: int, minutes: float, seed: int, kills: int, tell: Callable[[Report], None]) -> Report:
    """So many at once, each with a seed and a daemon of its own, their counts added up."""
    with tempfile.TemporaryDirectory(prefix="wlsoaks", dir="/tmp") as folder:
        files = [Path(folder, str(n)) for n in range(processes)]
        told: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: told.append(number))
        children = [
            subprocess.Popen(
                [
                    *(sys.executable, str(DEATH_SIGNAL), str(os.getpid()), sys.executable, "-m", "tests.soak"),
                    *("--minutes", str(minutes), "--seed", str(seed + n), "--report", str(file)),
                    *("--kills", str(kills // processes + (n < kills % processes))),
                ],
                cwd=ROOT,
                start_new_session=True,  # a Ctrl-C comes once, from here
            )
            for n, file in enumerate(files)
        ]

        def added_up() -> Report:
            found = [_reported(seed + n, *each) for n, each in enumerate(zip(children, files, strict=True))]
            return Report(
                dict(sum((Counter(one.counts) for one in found), Counter())),
                [f"seed {seed + n}: {what}" for n, one in enumerate(found) for what in one.broken],
                max(one.worst_answer for one in found),
                "; ".join(dict.fromkeys(one.early for one in found if one.early)),
                ", ".join(one.dir for one in found if one.broken and one.dir),
                "\n".join(one.memory for one in found if one.memory),
            )

        end, next_word = time.monotonic() + 60 * minutes + ENDING, time.monotonic() + SAY_EVERY
        while any(child.poll() is None for child in children):
            now = time.monotonic()
            if told and now < end:
                for child in children:
                    child.send_signal(signal.SIGTERM)
                end = min(end, now + ENDING)
                told.clear()
            if now >= end:
                for child in children:
                    child.kill()
                    child.wait()
            if now >= next_word:
                next_word = now + SAY_EVERY
                tell(added_up())
            time.sleep(0.1)
        return added_up()


def _reported(seed: int, child: subprocess.Popen[bytes], file: Path) -> Report:
    """What one of several has told last. Of one that has ended it must be the last word."""
    told = msgspec.json.decode(file.read_bytes(), type=Report) if file.exists() else Report({}, [], 0.0, "", "")
    if child.poll() not in (None, 0, 1):
        told.early = f"exit code {child.returncode} of the one with seed {seed}"
        told.broken.append(f"ended with {told.early}: what it counted is what it told last")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0, help="end after so many kills")
    parser.add_argument("--processes", type=int, default=1, help="soaks side by side, which share the kills")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # where one of several leaves what it counted
    options = parser.parse_args()
    began = time.monotonic()

    def tell(report: Report) -> None:
        if options.report:
            write_file(options.report, msgspec.json.encode(report))
        else:
            print(report.so_far(time.monotonic() - began), flush=True)

    work = options.minutes, options.seed, options.kills, tell
    if options.processes > 1:
        report = side_by_side(options.processes, *work)
    else:
        report = soak_once(*work, every=TELL_EVERY if options.report else SAY_EVERY)
    if options.report:
        tell(report)
        return 1 if report.broken else 0
    return report.say()


if __name__ == "__main__":
    sys.exit(main())
