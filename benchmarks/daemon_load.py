"""What the daemon costs while runs are watched: 8 runs of 50 events a second, 16 clients that hear all of them.

    python -m benchmarks.daemon_load [--runs 8] [--rate 50] [--clients 16] [--seconds 30] [--jobs 500]

Fake trainers write the events, so nothing here needs a GPU. Prints how long an event takes from its writing to a
client (median and 99th percentile), beside the same for a process that looks into the files itself every millisecond
(the floor, with the machine's own waits); the daemon's share of one core, and its memory. Then the same of an idle
daemon with so many queued jobs, and what its beat weighs.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import zmq

from daemon.wire.client import Client
from daemon.wire.paths import daemon_paths, endpoint
from daemon.wire.protocol import Beat, RunEvent, feed_decoder
from presets.runs.events import decode_event
from tests.daemon.conftest import Box
from tests.helpers.waiting import until_async


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def percentiles(waits: list[float]) -> str:
    waits = sorted(waits)
    p50, p99 = statistics.median(waits), waits[int(0.99 * (len(waits) - 1))]
    return f"p50 {1000 * p50:6.1f} ms   p99 {1000 * p99:6.1f} ms   worst {1000 * waits[-1]:6.1f} ms   ({len(waits)})"


def listen(dir: Path, clients: int, seconds: float) -> tuple[list[float], int]:
    """The waits of all events at all clients, and the bytes that one of them got in beats."""
    context, poller = zmq.Context(), zmq.Poller()
    for _ in range(clients):
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(endpoint(daemon_paths(dir).feed))
        poller.register(socket, zmq.POLLIN)
    first, waits, beats = None, [], 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for socket, _ in poller.poll(100):
            while True:
                try:
                    data = socket.recv(zmq.NOBLOCK)
                except zmq.Again:
                    break
                now, message = time.time(), feed_decoder.decode(data)
                first = first or socket
                if isinstance(message, RunEvent):
                    waits.append(now - message.event.time)
                elif isinstance(message, Beat) and socket is first:
                    beats += len(data)
    context.destroy(linger=0)
    return waits, beats


class Floor(threading.Thread):
    """Looks into one file itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.waits, self.end = path, [], False

    def run(self) -> None:
        with self.path.open("rb") as f:
            f.seek(0, 2)
            while not self.end:
                for line in f.read().splitlines():
                    try:
                        self.waits.append(time.time() - decode_event(line).time)
                    except msgspec.MsgspecError:  # in the middle of a write
                        continue
                time.sleep(0.001)


async def measure(options: argparse.Namespace, dir: Path) -> None:
    import asyncio

    box = Box(dir)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    pid = box.start("--pace", str(1 / options.rate))
    async with Client(dir) as client:
        for n in range(options.runs):
            await client.submit(box.job(f"run{n}", steps=10**6, gpus=[n]))
        for n in range(options.runs):
            await box.wait(client, f"run{n}", "running")
        await until_async(lambda: (box.run_dir(f"run{options.runs - 1}") / "events.jsonl").stat().st_size > 2**14)
        floor = Floor(box.run_dir("run0") / "events.jsonl")
        floor.start()
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.daemon_load", "--listen", dir),
                *("--clients", str(options.clients), "--seconds", str(options.seconds)),
            ],
            stdout=subprocess.PIPE,
        )
        await asyncio.sleep(2)
        before, began = cpu_seconds(pid), time.monotonic()
        await asyncio.sleep(options.seconds - 4)
        share = (cpu_seconds(pid) - before) / (time.monotonic() - began)
        waits, _ = msgspec.json.decode((await asyncio.to_thread(child.communicate))[0])
        floor.end = True
        print(f"event to client   {percentiles(waits)}")
        print(f"file to reader    {percentiles(floor.waits)}")
        print(f"daemon: {share:.2%} of a core, {rss_mib(pid):.1f} MiB; load {os.getloadavg()[0]:.1f}")
        for n in range(options.runs):
            await client.cancel(f"run{n}")
        for n in range(options.runs):
            await box.wait(client, f"run{n}")
        await client.submit(box.job("first", steps=10**6, gpus=[0]))
        await box.wait(client, "first", "running")
        for n in range(options.jobs):
            await client.submit(box.job(f"queued{n}", gpus=[0]))
        _, beats = await asyncio.to_thread(listen, dir, 1, 10.0)
        print(f"with {options.jobs} queued jobs: beats of {beats / 10 / 1024:.1f} KiB/s, {rss_mib(pid):.1f} MiB")
        for record in await client.jobs():
            if record.state == "queued":
                await client.cancel(record.id)
    await box.tear_down()


def main() -> None:
    import asyncio

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--rate", type=float, default=50, help="events a second of each run")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--listen", type=Path, help=argparse.SUPPRESS)  # the clients, in a process of their own
    options = parser.parse_args()
    if options.listen:
        print(msgspec.json.encode(listen(options.listen, options.clients, options.seconds)).decode())
        return
    dir = Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))
    try:
        asyncio.run(measure(options, dir))
    finally:
        shutil.rmtree(dir)


if __name__ == "__main__":
    main()
