"""How long a dashboard waits for its next event when the line to the daemon's machine fails, through a real sshd here.

    python -m benchmarks.ssh_cut [--rounds N]

A job there emits an event about every 50 ms; what the dashboard's feed receives is timed. Baseline: the longest wait of
an undisturbed second. Cut: from the kill of the sshd session. Frozen: from its SIGSTOP. Away: from the start of an sshd
that was gone for 20 s. Asleep: this client and the session are stopped, as by a laptop's lid, and the session is gone
at the waking, from which the time counts.
"""

import argparse
import asyncio
import itertools
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from pathlib import Path

from daemon.wire.client import Client
from presets.runs.events import Event
from tests.helpers.interface.harness import running_daemon, short_dir, write_job
from tests.helpers.sshd import ALIAS, OtherMachine, other_machine
from wanlora_tui.remote.connection import Connection, connected

AWAY_SECONDS = 20.0
QUIET_SECONDS = 2.0  # between two faults
ASLEEP_SECONDS = 10.0
UNDER_WAY = 0.2  # seconds after a fault in which what was sent before it may still come
PATIENCE = 120.0


class Watched:
    """When events came, in a thread of its own."""

    def __init__(self, folder: Path, job: str) -> None:
        self.times: list[float] = []
        self._folder, self._job = folder, job
        threading.Thread(target=lambda: asyncio.run(self._follow()), daemon=True).start()

    async def _follow(self) -> None:
        async with Client(self._folder, here=False) as client:
            async for item in client.follow(self._job):
                if isinstance(item, Event):
                    self.times.append(time.monotonic())

    def next_after(self, moment: float) -> float:
        """Seconds from then until an event came."""
        while not self.times or self.times[-1] <= moment:
            if time.monotonic() > moment + PATIENCE:
                raise SystemExit(f"no event within {PATIENCE:.0f} s")
            time.sleep(0.005)
        return next(t for t in self.times if t > moment) - moment

    def longest_wait(self, seconds: float) -> float:
        begin = time.monotonic()
        time.sleep(seconds)
        times = [begin, *(t for t in self.times if t > begin), time.monotonic()]
        return max(b - a for a, b in itertools.pairwise(times))


def cut(there: OtherMachine, seen: Watched) -> float:
    there.cut()
    return seen.next_after(time.monotonic() + UNDER_WAY) + UNDER_WAY


def frozen(there: OtherMachine, seen: Watched) -> float:
    stopped = there.freeze()
    waited = seen.next_after(time.monotonic() + UNDER_WAY) + UNDER_WAY
    for process in stopped:
        process.kill()
    return waited


def away(there: OtherMachine, seen: Watched) -> float:
    there.stop()
    time.sleep(AWAY_SECONDS)
    there.start()
    return seen.next_after(time.monotonic())


def asleep(there: OtherMachine, seen: Watched) -> float:
    """A helper wakes us: nobody runs in here meanwhile."""
    sessions = " ".join(str(p.pid) for p in there.freeze())
    waking = f"sleep {ASLEEP_SECONDS}; kill -KILL {sessions}; kill -CONT {os.getpid()}"
    with subprocess.Popen(["sh", "-c", waking], start_new_session=True):
        os.kill(os.getpid(), signal.SIGSTOP)
        return seen.next_after(time.monotonic())


def measure(there: OtherMachine, line: Connection, job: str, rounds: int) -> None:
    seen = Watched(line.folder, job)
    seen.next_after(time.monotonic())
    print("| what | rounds | median s | longest s |\n|---|---|---|---|")
    faults = (("cut", cut, rounds), ("frozen", frozen, rounds), ("asleep", asleep, 2), ("away", away, 2))
    table = [("undisturbed", [seen.longest_wait(1.0) for _ in range(rounds)])]
    for name, fault, times in faults:
        waits = []
        for _ in range(times):
            time.sleep(QUIET_SECONDS)
            waits.append(fault(there, seen))
        table.append((name, waits))
    for name, waits in table:
        print(f"| {name} | {len(waits)} | {statistics.median(waits):.2f} | {max(waits):.2f} |")


async def submit(daemon_dir: Path, folder: Path) -> str:
    async with Client(daemon_dir) as client:
        return str((await client.submit(write_job(folder, "watched", steps=1_000_000, pace_ms=50))).id)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    folder = short_dir()
    try:
        with running_daemon(folder / "d"), other_machine(folder / "there", folder / "d") as there:
            os.environ["PATH"] = f"{there.tools}:{os.environ['PATH']}"
            job = asyncio.run(submit(there.daemon_dir, folder))
            with connected(ALIAS, folder / "state") as line:
                measure(there, line, job, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
