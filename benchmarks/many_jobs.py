"""What it costs the daemon to take in many jobs at once: a first one that runs, and the others behind it in the queue.

    python -m benchmarks.many_jobs [--jobs 60] [--clients 4]

So many clients submit at the same time, each one job after the other; fake trainers, so nothing here needs a GPU.
Prints the time until the last was accepted, the daemon's CPU seconds for it, and the median and the longest wait of one
answer to another client that asks for the list all the while.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.daemon_load import cpu_seconds
from daemon.wire.client import Client
from tests.daemon.conftest import Box


async def measure(options: argparse.Namespace, dir: Path) -> None:
    box = Box(dir)
    load = os.getloadavg()[0]
    pid = box.start("--pace", "0.02")
    waits: list[float] = []

    async def submit(jobs: list[Path]) -> None:
        async with Client(dir) as client:
            for job in jobs:
                await client.submit(job)

    async def ask() -> None:
        async with Client(dir) as client:
            while True:
                began = time.monotonic()
                await client.jobs()
                waits.append(time.monotonic() - began)
                await asyncio.sleep(0.05)

    jobs = [box.job(f"queued{n}", gpus=[0]) for n in range(options.jobs)]
    async with Client(dir) as client:
        await client.submit(box.job("first", steps=10**6, gpus=[0]))
        await box.wait(client, "first", "running")
        asking = asyncio.create_task(ask())
        before, began = cpu_seconds(pid), time.monotonic()
        await asyncio.gather(*(submit(jobs[n :: options.clients]) for n in range(options.clients)))
        wall, cpu = time.monotonic() - began, cpu_seconds(pid) - before
        asking.cancel()
        print(
            f"{options.jobs} jobs of {options.clients} clients: {wall:.2f} s, the daemon's CPU {cpu:.2f} s; another"
            f" client's answer p50 {1000 * statistics.median(waits):.0f} ms, worst {1000 * max(waits):.0f} ms"
            f" (load {load:.1f} on {os.cpu_count()} cores)"
        )
        for n in range(options.jobs):
            await client.cancel(f"queued{n}")
    await box.tear_down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    dir = Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))
    try:
        asyncio.run(measure(options, dir))
    finally:
        shutil.rmtree(dir)


if __name__ == "__main__":
    main()
