"""The suite on a machine that has no time for it: `python -m tests.busy [--loops N | --stalls SECONDS |
--leaps SECONDS | --figures] [pytest's arguments]`.

`--loops` keeps N processes computing beside it. `--stalls` stops its processes at random moments for so long and lets
them go on, as a machine does that sleeps, swaps or is taken away: the suite's workers, what they have started, or all
at once. `--leaps` lets the clocks of the unit tests leap ahead instead, which takes no time and happens far more often.
What fails here and not on a quiet machine waits for a time instead of a condition (tests/helpers/waiting.py).

`--figures` slows nothing: it is another machine, with other free disk, memory, cores, names of folders, zone and
terminal (tests/helpers/figures). What fails there alone takes figures of the machine for granted.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

from tests.helpers.figures import another_machine
from tests.helpers.stalls import MARK, Stalls, ending_all

LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # it ends with us, however we end
SUITE = ["-q", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]


def main() -> int:
    parser = argparse.ArgumentParser(description="pytest on a busy machine, or on one that stands still now and then")
    parser.add_argument("--loops", type=int, help="processes that compute; 6, and none beside stalls, leaps or figures")
    parser.add_argument("--stalls", type=float, metavar="SECONDS", help="stop the suite's processes for so long")
    parser.add_argument("--every", type=float, default=4.0, metavar="SECONDS", help="mean time between two stalls")
    parser.add_argument("--leaps", type=float, metavar="SECONDS", help="let clocks leap ahead by so much")
    parser.add_argument("--figures", action="store_true", help="other free disk, memory, cores, paths, zone, terminal")
    parser.add_argument("--seed", type=int, help="of the stalls, leaps or figures; else another one each time")
    args, rest = parser.parse_known_args()
    count = args.loops if args.loops is not None else 0 if args.stalls or args.leaps or args.figures else 6
    seed = random.randrange(10**6) if args.seed is None else args.seed
    if args.leaps:
        rest = ["-m", "unit", "-p", "tests.helpers.leaps", f"--leap={args.leaps}", f"--leap-seed={seed}", *rest]
    began, loads, over = time.monotonic(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(10):
            loads.append(os.getloadavg()[0])

    watcher = threading.Thread(target=watch)
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with ExitStack() as stack:
        environment, more = stack.enter_context(another_machine(seed)) if args.figures else (dict(os.environ), [])
        mark = stack.enter_context(ending_all())
        suite = subprocess.Popen([sys.executable, "-m", "pytest", *SUITE, *more, *rest], env=environment | {MARK: mark})
        stalls = Stalls(suite.pid, mark, args.stalls, args.every, seed) if args.stalls else None
        watcher.start()
        try:
            code = suite.wait()
        finally:
            over.set()
            if stalls:
                stalls.end()
            watcher.join()
            for loop in loops:
                loop.kill()
                loop.wait()
    print(
        f"{count} busy loops on {os.cpu_count()} cores, load up to {max(loads):.1f}"
        f"{f', {stalls}' if stalls else ''}{f', figures of seed {seed}' if args.figures else ''}"
        f": pytest gave {code} after {(time.monotonic() - began) / 60:.1f} minutes"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
