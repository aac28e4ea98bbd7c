"""What the screens cost while nobody touches them: CPU of the interface over a daemon with few and with many jobs.

    python -m benchmarks.idle_screens [--seconds 20] [--jobs 500]

The interface runs on a pseudo-terminal of 160x48 whose output is read and thrown away, beside a daemon of its own with
the fake trainer of the tests, so nothing here needs a GPU. Each figure is user and system time of the interface's
process, in seconds of each minute and as a share of one core, from when the screen has stood for some seconds. Of a
run that has just begun each step moves all of the plot; of one a thousand steps old it moves next to nothing.
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
# as in the tests: what their daemon is forked from may have no threads
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
OLD = 1000  # steps
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


async def stopped(folder: Path, name: str, *, at: int = 1) -> None:
    async with Client(folder) as client:
        while (await client.show(name)).step < at:
            await asyncio.sleep(0.2)
        await client.stop(name)
        while (await client.show(name)).state != "stopped":
            await asyncio.sleep(0.2)


async def resumed(folder: Path, jobs: Path, name: str, *, pace_ms: int) -> None:
    """At another pace."""
    write_job(jobs, name, steps=1_000_000, pace_ms=pace_ms)
    async with Client(folder) as client:
        check = await client.resume_check(name)
        await client.resume(name, accepted=check.digest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=500)
    options = parser.parse_args()
    os.environ |= ONE_THREAD
    folder, jobs = short_dir(), Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))

    def tell(what: str, *arguments: str) -> None:
        found = share(folder, options.seconds, *arguments)
        said = f"{0.6 * found:5.2f} s a minute, {found:4.1f}% of a core"
        print(f"{what:<66} {said}; load {os.getloadavg()[0]:.1f}", flush=True)

    try:
        with running_daemon(folder):
            asyncio.run(fill(folder, jobs, ["ended"], pace_ms=200))
            asyncio.run(stopped(folder, "ended"))
            tell("dashboard of a stopped run", "attach", "ended")
            asyncio.run(fill(folder, jobs, ["old"], pace_ms=5))
            asyncio.run(stopped(folder, "old", at=OLD))
            asyncio.run(resumed(folder, jobs, "old", pace_ms=2000))
            tell(f"dashboard of a run of {OLD} steps, another every two seconds", "attach", "old")
            asyncio.run(stopped(folder, "old"))
            asyncio.run(fill(folder, jobs, ["first"], pace_ms=2000))
            tell("dashboard of a run with a step every two seconds", "attach", "first")
            tell("3 jobs, one of them with a step every two seconds")
            asyncio.run(fill(folder, jobs, [f"job_{i:03}" for i in range(options.jobs - 3)], pace_ms=2000))
            tell(f"{options.jobs} jobs, one of them with a step every two seconds")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(jobs, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
