"""What `python -m tests.soak` does to one daemon: faults, and the promises that are looked at then and at the end."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import zmq

from daemon.errors import DaemonError, NotRunning
from daemon.processes.proc import MARKER
from daemon.wire.blocking import ping
from daemon.wire.client import Client
from daemon.wire.find import find
from daemon.wire.paths import endpoint
from daemon.wire.protocol import ENDED_STATES, LIVE_STATES, JobRecord
from daemon.zmtp.frames import MORE, frame
from presets.runs.events import read_events
from tests.helpers import NO_GPUS, ROOT
from tests.hostile import Raw

GPUS = 3  # queues side by side
STEPS = 150  # of each job: a few seconds
WAITING = 6  # jobs that are kept in the queue
FOLLOWERS = 4
FRAMES = 2000  # of nonsense at a time
LAST = 0.25  # of its minutes are for what is left to end undisturbed
MOST_LAST = 120.0  # seconds of them
STARTING = 60.0  # seconds that a daemon may take until it answers
MOST_GROWTH = 40 * 2**20  # bytes that the daemon's memory may be above where it settled, when all is over
_FOLLOWER = """\
import asyncio, sys
from pathlib import Path
from daemon.wire.client import Client
from presets.runs.events import Event
async def go():
    async with Client(Path(sys.argv[1])) as client:
        async for found in client.follow(sys.argv[2], int(sys.argv[3])):
            if isinstance(found, Event):
                print(found.run, found.seq, found.kind, flush=True)
asyncio.run(go())
"""


@dataclass
class Follower:
    """A client in a process of its own that writes down what it is told, and goes on where it was when it is killed."""

    dir: Path
    job: str
    told: Path
    process: subprocess.Popen[bytes] | None = None

    def seqs(self) -> list[int]:
        """What it was told, its last line left out if that is torn."""
        lines = self.told.read_text().split("\n")[:-1] if self.told.exists() else []
        return [int(line.split()[1]) for line in lines]

    def start(self) -> None:
        # a line that a kill has torn goes, so that what follows stands on lines of its own
        whole = self.told.read_bytes().rpartition(b"\n")[0:2] if self.told.exists() else ()
        self.told.write_bytes(b"".join(whole))
        since = (self.seqs() or [0])[-1]
        with self.told.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _FOLLOWER, str(self.dir), self.job, str(since)],
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.DEVNULL,
            )

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass
class Soak:
    """One daemon, its jobs, and what was done to them."""

    dir: Path
    choice: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    left: int = 0  # of them that had not ended when they were last looked at
    daemon: subprocess.Popen[bytes] | None = None
    settled: int = 0  # bytes of memory of the daemon once it had work
    grown: str = ""  # what became of its memory, in words
    worst_answer: float = 0.0  # seconds
    early: str = ""  # what ends it before it has looked at everything; "" for nothing
    cancel: Callable[[], None] = lambda: None  # to be called with that

    def end_early(self, why: str) -> None:
        """From a signal or another thread; of several the first one counts."""
        if not self.early:
            self.early = why
            self.cancel()

    # --- the daemon -------------------------------------------------------------------------------------------

    def start_daemon(self) -> None:
        trainer = [sys.executable, str(ROOT / "tests/helpers/fake_trainer.py"), "--pace", "0.02"]
        with (self.dir / "daemon.out").open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "daemon", "--dir", str(self.dir), "--trainer", *trainer],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(NO_GPUS), str(ROOT)])},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + STARTING
        while time.monotonic() < until and not self.early:
            with suppress(NotRunning):
                if ping(self.dir).pid == self.daemon.pid:
                    return
            if self.daemon.poll() is not None:
                raise SystemExit(f"the daemon did not start: {(self.dir / 'daemon.out').read_text()[-2000:]}")
            time.sleep(0.05)
        if not self.early:
            raise SystemExit(f"the daemon did not answer for {STARTING:.0f} s")

    def memory(self) -> int:
        assert self.daemon is not None
        return int(psutil.Process(self.daemon.pid).memory_info().rss)

    def trainers(self) -> dict[int, str]:
        """pid -> the marker of every process that a daemon of this folder has started."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                marker = process.environ().get(MARKER, "")
                if marker.startswith(f"{self.dir}/") and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = marker
        return found

    def end_all(self) -> None:
        """Nothing of it runs afterwards."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
        while there := self.trainers():
            for pid in there:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    # --- jobs -------------------------------------------------------------------------------------------------

    async def submit(self, client: Client) -> None:
        """One more job; the same file again must be refused, since its run folder is in use."""
        name, gpu = f"soak_{len(self.jobs)}", self.choice.randrange(GPUS)
        path = self.dir / "jobs" / f"{name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'[job]\nname = "{name}"\ngpus = [{gpu}]\n[training]\nsteps = {STEPS}\n[[datasets]]\npath = "clips"\n'
        )
        await client.submit(path)
        self.jobs.append(name)
        self.counts["jobs submitted"] += 1

    async def feed(self, client: Client) -> None:
        """Keep the queue filled, and take up again what a kill has ended."""
        records = await client.jobs()
        await self.let_go(client, records)
        for record in records:
            if record.state in ("failed", "stopped"):
                with suppress(DaemonError):
                    await client.resume(record.id)
                    self.counts["jobs resumed"] += 1
        live = sum(record.state in LIVE_STATES for record in records)
        for _ in range(max(0, WAITING - live)):
            await self.submit(client)

    async def let_go(self, client: Client, records: list[JobRecord]) -> None:
        """What waits for a user's word goes on: a daemon that finds its only trainer killed with the last daemon takes
        it for the end of a container."""
        if any(record.state == "queued" and record.waiting and not record.restart_at for record in records):
            await client.resume_all()
            self.counts["queues let go"] += 1

    # --- faults -----------------------------------------------------------------------------------------------

    def kill_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self.counts["kills of the daemon"] += 1
        time.sleep(self.choice.random() * 0.3)
        self.start_daemon()

    def kill_trainer(self) -> None:
        if there := sorted(self.trainers()):
            with suppress(ProcessLookupError):
                os.kill(self.choice.choice(there), signal.SIGKILL)
                self.counts["kills of a trainer"] += 1

    def pause(self, pid: int, what: str) -> None:
        """Stopped by a signal for a while, as a machine that sleeps."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.choice.random() * 1.5)
            os.kill(pid, signal.SIGCONT)
            self.counts[f"pauses of {what}"] += 1

    def nonsense(self) -> None:
        """Frames that are no requests: random bytes, torn and altered requests, deep nesting, many parts; and a
        connection that does not even speak the transport."""
        where, good = find(self.dir).where, msgspec.json.encode({"id": "x", "version": 1, "command": {"type": "jobs"}})
        raw: Raw | None = None
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(endpoint(where.control))
            for _ in range(FRAMES):
                kind = self.choice.randrange(5)
                data = bytearray(good)
                if kind == 0:
                    data = bytearray(self.choice.randbytes(self.choice.randrange(200)))
                elif kind == 1:
                    del data[self.choice.randrange(len(data)) :]
                elif kind == 2:
                    data[self.choice.randrange(len(data))] = self.choice.randrange(256)
                elif kind == 3:
                    data = bytearray(b"[" * self.choice.randrange(1, 5000))
                if kind == 0:
                    raw = self._by_hand(raw, where.control, [bytes(data)] * self.choice.randrange(1, 20))
                    continue
                with suppress(zmq.ZMQError):
                    dealer.send(data, flags=zmq.NOBLOCK)
                    self.counts["frames of nonsense"] += 1
                while dealer.poll(0):
                    dealer.recv_multipart()
        if raw is not None:
            raw.close()
        with socket.socket(socket.AF_UNIX) as raw, suppress(OSError):
            raw.settimeout(1)
            raw.connect(os.fspath(where.control))
            raw.send(self.choice.randbytes(500))
            self.counts["connections that speak nothing"] += 1

    def _by_hand(self, raw: Raw | None, control: Path, parts: list[bytes]) -> Raw | None:
        """A request of several parts, and the connection, unless that was cut off. libzmq would end our process when
        it is cut off within such a request (an assertion in session_base.cpp); wanlora's clients send none."""
        try:
            raw = raw or Raw(control, "DEALER")
            raw.socket.settimeout(1)
            raw.send(b"".join(frame(part, MORE) for part in parts[:-1]) + frame(parts[-1]))
        except (OSError, AssertionError):
            if raw is not None:
                raw.close()
            return None
        self.counts["frames of nonsense"] += len(parts)
        return raw

    def fault(self, followers: list[Follower], *, kill: bool) -> None:
        """Any, or only a kill."""
        assert self.daemon is not None
        follower = self.choice.choice(followers)
        match self.choice.choices(range(6), weights=(4, 4, 2, 0, 0, 0) if kill else (4, 4, 2, 1, 1, 2))[0]:
            case 0:
                self.kill_daemon()
            case 1:
                follower.end()
                follower.start()
                self.counts["kills of a client"] += 1
            case 2:
                self.kill_trainer()
            case 3:
                self.pause(self.daemon.pid, "the daemon")
            case 4 if follower.process is not None:
                self.pause(follower.process.pid, "a client")
            case 5:
                self.nonsense()

    @property
    def kills(self) -> int:
        return sum(n for what, n in self.counts.items() if what.startswith("kills"))

    # --- promises ---------------------------------------------------------------------------------------------

    def promise(self, kept: bool, what: str) -> None:
        self.counts["promises looked at"] += 1
        if not kept:
            self.broken.append(what)

    def look_at_trainers(self) -> None:
        """Never two trainers of one job at once: a marker is the state folder, the job's id, and the attempt's key."""
        jobs = Counter(marker.split(":")[1] for marker in self.trainers().values())
        self.promise(max(jobs.values(), default=1) == 1, f"two trainers of one job: {jobs}")

    def look_at_follower(self, follower: Follower) -> None:
        seqs = follower.seqs()
        self.promise(
            seqs == list(range(1, len(seqs) + 1)),
            f"{follower.job}: a follower was told {seqs[:5]}... and not each event once",
        )
        self.counts["events followed"] += len(seqs)

    def look_at_run(self, name: str) -> int:
        """Its file: numbered without gaps, and each step of the finished run there. Gives the number of events."""
        events = [event for event, _ in read_events(self.dir / "jobs/runs" / name / "events.jsonl")]
        self.promise(
            [e.seq for e in events] == list(range(1, len(events) + 1)), f"{name}: the events are not numbered 1..N"
        )
        self.promise(events[-1].kind == "done", f"{name}: its last event is {events[-1].kind}")
        self.promise(
            {e.data["step"] for e in events if e.kind == "step"} == set(range(1, STEPS + 1)), f"{name}: steps missing"
        )
        return len(events)


async def run(soak: Soak, minutes: float, kills: int) -> None:
    """Faults for most of that time, then everything to its end, then the counting."""
    await asyncio.to_thread(soak.start_daemon)
    followers: list[Follower] = []
    try:
        async with Client(soak.dir, retries=8) as client:
            await disturb(soak, client, followers, 60 * minutes - min(MOST_LAST, LAST * 60 * minutes), kills)
            for follower in followers:
                follower.end()
            soak.promise(soak.kills >= kills, f"{soak.kills} kills in {minutes:g} minutes, and {kills} were asked for")
            await finish(soak, client)
    finally:
        for follower in followers:
            follower.end()
            soak.look_at_follower(follower)


async def disturb(soak: Soak, client: Client, followers: list[Follower], seconds: float, kills: int) -> None:
    end, began = time.monotonic() + seconds, time.monotonic()
    await soak.feed(client)
    for i, job in enumerate(soak.jobs[:FOLLOWERS]):
        followers.append(Follower(soak.dir, job, soak.dir / f"told_{i}_{job}"))
        followers[-1].start()
    while time.monotonic() < end and not (kills and soak.kills >= kills):
        spent = (time.monotonic() - began) / seconds
        await asyncio.to_thread(soak.fault, followers, kill=soak.kills < kills * spent)
        asked = time.monotonic()
        await soak.feed(client)
        soak.worst_answer = max(soak.worst_answer, time.monotonic() - asked)
        soak.look_at_trainers()
        if not soak.settled and time.monotonic() - began > 10:
            soak.settled = soak.memory()
        for follower in list(followers):  # one that has seen its job's end follows the next one
            record = await client.show(follower.job)
            events = soak.dir / "jobs/runs" / follower.job / "events.jsonl"
            if record.state == "done" and follower.seqs()[-1:] == [sum(1 for _ in events.open("rb"))]:
                follower.end()
                followers.remove(follower)
                soak.look_at_follower(follower)
                newest = soak.choice.choice(soak.jobs[-WAITING:])
                number = soak.counts["followers begun"] = soak.counts["followers begun"] + 1
                followers.append(Follower(soak.dir, newest, soak.dir / f"told_more_{number}_{newest}"))
                followers[-1].start()


async def finish(soak: Soak, client: Client) -> None:
    """Undisturbed now: every job must come to its end."""
    assert soak.daemon is not None
    while True:  # until its minutes are over
        records = await client.jobs()
        soak.left = sum(record.state != "done" for record in records)
        await soak.let_go(client, records)
        if all(record.state in ENDED_STATES for record in records):
            again = [record for record in records if record.state != "done"]
            for record in again:
                await client.resume(record.id)
            if not again:
                break
        await asyncio.sleep(0.2)
    soak.promise(
        sorted(r.name for r in records) == sorted(soak.jobs), f"{len(records)} jobs listed, {len(soak.jobs)} submitted"
    )
    for name in soak.jobs:
        soak.counts["events written"] += soak.look_at_run(name)
    _, view = await client.snapshot(soak.jobs[0])
    soak.promise(view.step == STEPS, f"the fold of {soak.jobs[0]} ends at step {view.step}")
    grown = soak.memory() - soak.settled
    soak.promise(not soak.settled or grown < MOST_GROWTH, f"the daemon grew by {grown / 2**20:.0f} MiB")
    await client.shutdown()
    while soak.daemon.poll() is None:
        await asyncio.sleep(0.05)
    soak.promise(not soak.trainers(), f"left running: {soak.trainers()}")
    soak.grown = f"memory of the daemon: {soak.settled / 2**20:.0f} MiB settled, {grown / 2**20:+.0f} MiB at the end"
