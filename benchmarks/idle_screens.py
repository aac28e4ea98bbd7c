"""What the screens cost while nobody touches them: CPU of the interface over a daemon with few and with many jobs.

    python -m benchmarks.idle_screens [--seconds 20] [--jobs 500]

The interface runs on a pseudo-terminal of 160x48 whose output is read and thrown away, beside a daemon of its own with
the fake trainer of the tests, so nothing here needs a GPU. Each figure is user and system time of the interface's
process, as a share of one core, from when the screen has stood for some seconds.
"""

import argparse
import asyncio
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from fcntl import ioctl
from pathlib import Path

import psutil

from daemon.wire.client import Client
from tests.helpers.interface.harness import running_daemon, short_dir, write_job

ROWS, COLUMNS = 48, 160
SETTLE = 6.0  # seconds until the list is there and the first drawings are over


def share(folder: Path, seconds: float, *arguments: str) -> float:
    """Percent of a core that `wanlora ARGUMENTS` takes."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, ROWS * 20, COLUMNS * 10))
    process = subprocess.Popen(
        [sys.executable, "-m", "wanlora_tui.cli", *arguments, "--dir", str(folder)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color"},
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            if select.select([master], [], [], 0.2)[0]:
                try:
                    data = os.read(master, 65536)
                except OSError:  # the other side is closed
                    return
                if b"\x1b[c" in data:  # "what are you?": every terminal answers, and the program waits for it
                    os.write(master, b"\x1b[?62;22c")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        time.sleep(SETTLE)
        watched = psutil.Process(process.pid)
        before = watched.cpu_times()
        time.sleep(seconds)
        after = watched.cpu_times()
        return 100 * (after.user + after.system - before.user - before.system) / seconds
    finally:
        os.write(master, b"q")
        process.wait(30)
        over.set()
        reader.join()
        os.close(master)


async def fill(folder: Path, jobs: Path, names: list[str], *, pace_ms: int) -> None:
    async with Client(folder) as client:
        for name in names:
            await client.submit(write_job(jobs, name, steps=1_000_000, pace_ms=pace_ms))


async def stopped(folder: Path, name: str) -> None:
    async with Client(folder) as client:
        while (await client.show(name)).step < 1:
            await asyncio.sleep(0.2)
        await client.stop(name)
        while (await client.show(name)).state != "stopped":
            await asyncio.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=500)
    options = parser.parse_args()
    folder, jobs = short_dir(), Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))

    def tell(what: str, *arguments: str) -> None:
        found = share(folder, options.seconds, *arguments)
        print(f"{what:<52} {found:5.1f}% of a core; load {os.getloadavg()[0]:.1f}", flush=True)

    try:
        with running_daemon(folder):
            asyncio.run(fill(folder, jobs, ["ended"], pace_ms=200))
            asyncio.run(stopped(folder, "ended"))
            tell("dashboard of a stopped run", "attach", "ended")
            asyncio.run(fill(folder, jobs, ["first"], pace_ms=2000))
            tell("dashboard of a run with a step every two seconds", "attach", "first")
            tell("2 jobs, one of them with a step every two seconds")
            asyncio.run(fill(folder, jobs, [f"job_{i:03}" for i in range(options.jobs - 2)], pace_ms=2000))
            tell(f"{options.jobs} jobs, one of them with a step every two seconds")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(jobs, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
