"""Coming back to a run of a million events: how long until its first screen, and what that costs everybody else.

    python -m benchmarks.reattach [--events 1000000] [--live 330000]

A run folder gets so many events of the real shape. Measured, each with a daemon that has just started: the first
snapshot without a fold beside the events (a run trained without any daemon), and with one; the longest that another
client waits meanwhile for the list of jobs; the memory of daemon and client. Baseline: one process that does nothing
but read the same lines as events. Then a live run of so many events: how the daemon's memory grows with it, and how
soon the next daemon answers and knows the run, killed in the middle of it.
"""

import argparse
import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.daemon_load import rss_mib
from daemon.events.stored_fold import FOLD_FILE
from daemon.wire.client import Client
from presets.runs.events import Event, read_events
from tests.daemon.conftest import Box
from tests.helpers.waiting import until_async

CLIENT = """
import asyncio, sys, time
from pathlib import Path
from daemon.wire.client import Client
from benchmarks.daemon_load import rss_mib
import os
async def main():
    async with Client(Path(sys.argv[1])) as client:
        began = time.monotonic()
        _, view = await client.snapshot("one")
        print(time.monotonic() - began, rss_mib(os.getpid()), view.last_seq)
asyncio.run(main())
"""

PLAIN = """
import sys
from pathlib import Path
from presets.runs.events import read_events
for _ in read_events(Path(sys.argv[1])):
    pass
"""


def write_events(path: Path, count: int) -> None:
    """Mostly steps, as a training of 20 ms a step would write them."""
    rng, step = random.Random(1), 0
    with path.open("wb") as f:
        for seq in range(1, count + 1):
            kind, data = "step", {}
            if seq == 1:
                kind, data = "started", {"name": "one", "job": {}, "plan": "p", "versions": {}, "device": "cpu"}
                data |= {"steps": count, "resumed_from": 0}
            elif seq == count:
                kind, data = "done", {"step": step, "files": ["one.safetensors"], "seconds": 1.0}
            elif seq % 250 == 0:
                kind = "checkpoint"
                data = {"step": step, "path": f"checkpoints/step_{step:09}", "sha256": "0" * 64}
            else:
                step += 1
                data = {"step": step, "expert": "high_noise" if step // 10 % 2 else "low_noise", "loss": rng.random()}
                data |= {"parts": {"flow": rng.random()}, "lr": 1e-4, "grad_norm": rng.random()}
                data |= {"timestep": 1000 * rng.random(), "vram_gib": 22.125, "ram_gib": 55.25}
                data |= {"seconds": {"total": 2.125, "data": 0.01, "forward": 1.2, "backward": 0.9}}
                data |= {"clips": ["orbit/clip_001.mp4"]}
            event = Event(seq=seq, time=1.7e9 + seq / 50, run="bench", attempt=1, kind=kind, data=data)  # type: ignore[arg-type]
            f.write(msgspec.json.encode(event) + b"\n")


async def first_snapshot(box: Box, what: str) -> None:
    """Of a client in a process of its own, while another one asks again and again."""
    pid = box.start("--pace", "0")
    before = rss_mib(pid)
    async with Client(box.dir, timeout=60) as other:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, str(box.dir), stdout=asyncio.subprocess.PIPE
        )
        waits, reading = [], asyncio.create_task(child.communicate())
        while not reading.done():
            began = time.monotonic()
            await other.jobs()
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.01)
        seconds, client, seq = (await reading)[0].split()
        waits.sort()
        print(
            f"{what}: first snapshot {float(seconds):.2f} s of {int(seq)} events; others wait at most"
            f" {1000 * waits[-1]:.0f} ms (p99 {1000 * waits[int(0.99 * (len(waits) - 1))]:.0f} ms);"
            f" daemon {before:.0f} -> {rss_mib(pid):.0f} MiB, client {float(client):.0f} MiB;"
            f" load {os.getloadavg()[0]:.1f}"
        )
        await until_async((box.run_dir("one") / FOLD_FILE).exists, "the fold being stored")
        await other.shutdown()
    await asyncio.to_thread(box.process.wait)  # type: ignore[union-attr]


async def measure(options: argparse.Namespace, dir: Path) -> None:
    box = Box(dir)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    box.start("--pace", "0")
    async with Client(dir) as client:
        await client.submit(box.job("one", steps=20))
        await box.wait(client, "one")
        await client.shutdown()
    await asyncio.to_thread(box.process.wait)  # type: ignore[union-attr]
    events = box.run_dir("one") / "events.jsonl"
    write_events(events, options.events)
    began = time.monotonic()
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", PLAIN, events], check=True)
    print(f"baseline: {time.monotonic() - began:.2f} s to read {events.stat().st_size / 2**20:.0f} MiB as events")
    (box.run_dir("one") / FOLD_FILE).unlink(missing_ok=True)
    await first_snapshot(box, "no fold beside it")
    await first_snapshot(box, "with a fold     ")

    pid = box.start("--pace", "0.0001")
    async with Client(dir, timeout=60) as client:
        await client.submit(box.job("live", steps=10**6, gpus=[1]))
        await box.wait(client, "live", "running")
        log = box.run_dir("live") / "events.jsonl"
        before = rss_mib(pid)
        await until_async(lambda: log.stat().st_size > options.live * 300)
        await client.show("live")
        count = sum(1 for _ in read_events(log))
        print(f"live: daemon {before:.0f} -> {rss_mib(pid):.0f} MiB with {count} events; load {os.getloadavg()[0]:.1f}")
        box.kill9()
        began = time.monotonic()
        box.start()
        answered = time.monotonic() - began
        await client.snapshot("live")
        known = time.monotonic() - began
        print(f"killed: the next daemon answers after {answered:.2f} s, and knows the run after {known:.2f} s")
        await client.cancel("live")
    await box.tear_down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10**6)
    parser.add_argument("--live", type=int, default=330_000)
    options = parser.parse_args()
    dir = Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))
    try:
        asyncio.run(measure(options, dir))
    finally:
        shutil.rmtree(dir)


if __name__ == "__main__":
    main()
