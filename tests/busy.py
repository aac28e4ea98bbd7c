"""The whole suite on a busy machine: `python -m tests.busy [--loops N] [pytest's arguments]` keeps N processes
computing beside it.

What fails here and not on a quiet machine waits for a time instead of a condition (tests/helpers/waiting.py).
"""

import argparse
import os
import subprocess
import sys
import threading
import time

LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # it ends with us, however we end
SUITE = ["-q", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]


def main() -> int:
    parser = argparse.ArgumentParser(description="pytest beside processes that compute all the time")
    parser.add_argument("--loops", type=int, default=6)
    args, rest = parser.parse_known_args()
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(args.loops)]
    began, loads, over = time.monotonic(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(10):
            loads.append(os.getloadavg()[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        code = subprocess.run([sys.executable, "-m", "pytest", *SUITE, *rest], check=False).returncode
    finally:
        over.set()
        watcher.join()
        for loop in loops:
            loop.kill()
            loop.wait()
    print(
        f"{args.loops} busy loops on {os.cpu_count()} cores, load up to {max(loads):.1f}: pytest gave {code} after"
        f" {(time.monotonic() - began) / 60:.1f} minutes"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
