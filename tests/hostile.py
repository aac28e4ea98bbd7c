"""Clients that want the daemon to fall, or to swell: floods, halves, mutes, fuzz. `python -m tests.hostile` lets all of
them at a real daemon (also part of `make torture`) and prints what it took; tests/daemon/test_hostile.py is the short
form.

They speak ZMTP by hand, because libzmq would not send most of this. Exit code 0: every figure holds.
"""

import argparse
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from daemon.errors import DaemonError
from daemon.wire import protocol as wire
from daemon.wire.blocking import AnyVersionClient, ping
from daemon.wire.find import find
from daemon.wire.paths import daemon_paths
from daemon.zmtp.frames import COMMAND, GREETING, GREETING_BYTES, LONG, MORE, FrameReader, command, frame, ready

MOST_RSS = 200 * 2**20  # bytes of the daemon, whatever clients do
MOST_GROWTH = 10 * 2**20  # bytes by a million fuzzed frames
WINDOW = 8  # fuzzed requests that are under way at once
CHUNK = 2**16


class Raw:
    """A connection by hand. `hello`: the handshake is done."""

    def __init__(self, path: Path, kind: str, *, hello: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(30)
        self.reader = FrameReader(wire.MAX_REPLY_BYTES)
        self.socket.connect(str(path))
        if hello:
            self.socket.sendall(GREETING + ready(kind))
            while len(self.reader.held) < GREETING_BYTES:
                self._more()
            del self.reader.held[:GREETING_BYTES]
            flags, _ = self.take()
            assert flags & COMMAND

    def _more(self) -> None:
        try:
            data = self.socket.recv(CHUNK)
        except TimeoutError:
            raise AssertionError("neither an answer nor the end of the connection") from None
        if not data:
            raise ConnectionResetError("cut off")
        self.reader.held += data

    def take(self) -> tuple[int, bytes]:
        """The next frame. Raises OSError when we were cut off."""
        while (found := self.reader.take()) is None:
            self._more()
        return found

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        self.socket.close()


Attack = Callable[[Path, Path, threading.Event], None]  # control socket, feed socket, the end


def _again(attack: Callable[[Path, Path], Iterator[None]]) -> Attack:
    """On to the next connection whenever the daemon has cut one off."""

    def attacks(control: Path, feed: Path, end: threading.Event) -> None:
        while not end.is_set():
            with suppress(OSError):
                for _ in attack(control, feed):
                    if end.is_set():
                        break

    return attacks


def _flood(path: Path, kind: str, data: bytes) -> Iterator[None]:
    raw = Raw(path, kind)
    raw.socket.settimeout(0.5)  # a daemon that does not read on holds us up: then another connection
    try:
        while True:
            raw.send(data)
            yield
    finally:
        raw.close()


def _frames(control: Path, feed: Path) -> Iterator[None]:
    return _flood(control, "DEALER", frame(b"", MORE) * 2**16)


def _frames_on_the_feed(control: Path, feed: Path) -> Iterator[None]:
    return _flood(feed, "SUB", frame(b"", MORE) * 2**16)


def _subscriptions(control: Path, feed: Path) -> Iterator[None]:
    rng = random.Random(1)
    return _flood(feed, "SUB", b"".join(command(b"SUBSCRIBE", rng.randbytes(16)) for _ in range(4096)))


def _huge_topics(control: Path, feed: Path) -> Iterator[None]:
    return _flood(feed, "SUB", frame(b"\1" + bytes(2**20)))


def _pings(control: Path, feed: Path) -> Iterator[None]:
    return _flood(control, "DEALER", command(b"PING", bytes(18)) * 4096)


def _never_read(control: Path, feed: Path) -> Iterator[None]:
    return _flood(
        control, "DEALER", b"".join(frame(wire.encode(wire.Request(id="n", command=wire.Jobs()))) for _ in range(256))
    )


def _huge_ids(control: Path, feed: Path) -> Iterator[None]:
    return _flood(control, "DEALER", frame(wire.encode(wire.Request(id="x" * 900_000, command=wire.Jobs()))))


def _endless_greeting(control: Path, feed: Path) -> Iterator[None]:
    raw = Raw(control, "", hello=False)
    try:
        raw.send(GREETING)
        while True:
            raw.send(frame(b"\5READY" + bytes(2**16), COMMAND))
            yield
    finally:
        raw.close()


def _many(attack: Callable[[Path, Path], Raw], most: int) -> Attack:
    """Connections that are held open, as many as can be had."""

    def attacks(control: Path, feed: Path, end: threading.Event) -> None:
        held: list[Raw] = []
        while not end.wait(0 if len(held) < most else 0.2):
            try:
                held.append(attack(control, feed))
            except OSError:
                end.wait(0.01)
            if len(held) > most:
                held.pop(0).close()
        for raw in held:
            raw.close()

    return attacks


def _mute(control: Path, feed: Path) -> Raw:
    return Raw(control, "", hello=False)


def _idle(control: Path, feed: Path) -> Raw:
    return Raw(control, "DEALER")


def _half(control: Path, feed: Path) -> Raw:
    raw = Raw(control, "DEALER")
    size = wire.MAX_REQUEST_BYTES
    raw.send(bytes((LONG,)) + size.to_bytes(8, "big") + bytes(size - 1))
    return raw


def _deaf(control: Path, feed: Path) -> Raw:
    raw = Raw(feed, "SUB")
    raw.send(frame(b"\1"))
    return raw


ATTACKS: dict[str, tuple[Attack, int]] = {  # with so many threads
    "one message of endless frames": (_again(_frames), 4),
    "the same on the feed": (_again(_frames_on_the_feed), 4),
    "endless subscriptions": (_again(_subscriptions), 4),
    "huge topics": (_again(_huge_topics), 2),
    "endless pings": (_again(_pings), 2),
    "requests whose answers are not read": (_again(_never_read), 4),
    "huge ids": (_again(_huge_ids), 2),
    "an endless greeting": (_again(_endless_greeting), 2),
    "connections that never greet": (_many(_mute, 1100), 1),
    "connections that say nothing": (_many(_idle, 1100), 1),
    "halves of requests": (_many(_half, 300), 1),
    "subscribers that do not read": (_many(_deaf, 300), 1),
}


@contextmanager
def under_attack(dir: Path, name: str) -> Iterator[None]:
    """While inside, the daemon of `dir` is attacked."""
    attack, threads = ATTACKS[name]
    where, end = daemon_paths(dir), threading.Event()
    started = [
        threading.Thread(target=attack, args=(where.control, where.feed, end), daemon=True) for _ in range(threads)
    ]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in started:
            thread.join()


def memory(pid: int, what: str = "VmRSS") -> int:
    """Bytes of a process; `VmHWM`: at most, ever."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(what)


WHOLE = [
    wire.encode(wire.Request(id=f"r{n}", command=c))
    for n, c in enumerate(
        [
            wire.Jobs(),
            wire.Snapshot("1"),
            wire.Replay("1", 3),
            wire.Stop("x"),
            wire.Hello(1),
            wire.Set("x", "training.lr", "1"),
            wire.Resume("x", 3, "0f"),
            wire.Submit("/nowhere/job.toml"),
            wire.Checkpoints("nothing"),
        ]
    )
]


def mutilated(rng: random.Random) -> bytes:
    """A request with some of its bytes wrong, missing, doubled, or none of it right."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randint(0, 300))
    data = bytearray(rng.choice(WHOLE))
    for _ in range(rng.randint(0, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    match rng.randrange(6):
        case 0:
            del data[rng.randint(0, len(data)) :]
        case 1:
            data += data[rng.randint(0, len(data)) :]
    return bytes(data)


def fuzz(dir: Path, frames: int, seed: int) -> None:
    """Send so many mutilated requests, each of them answered, and a damaged frame now and then, which is not."""
    rng, where, raw = random.Random(seed), daemon_paths(dir), None
    for _ in range(frames // WINDOW):
        raw = raw or Raw(where.control, "DEALER")
        raw.send(b"".join(frame(mutilated(rng)) for _ in range(WINDOW)))
        for _ in range(WINDOW):
            _, body = raw.take()
            wire.envelope_decoder.decode(body)
        if rng.random() < 0.001:
            with suppress(OSError):
                raw.send(bytes((rng.randint(8, 255),)) + rng.randbytes(40))
                raw.take()
            raw.close()
            raw = None
    if raw is not None:
        raw.close()


def _served(dir: Path) -> float:
    """Seconds until the daemon answers a new client."""
    began = time.monotonic()
    while True:
        with suppress(DaemonError):
            ping(dir, timeout=2)
            return time.monotonic() - began


def _attacked(dir: Path, name: str, seconds: float) -> tuple[float, float]:
    """The longest answer to a client that was there before, in seconds; and how long it took to serve a new one
    afterwards."""
    longest = 0.0
    with AnyVersionClient(find(dir), timeout=60) as client:
        client.hello()
        with under_attack(dir, name):
            end = time.monotonic() + seconds
            while (began := time.monotonic()) < end:
                client.hello()
                longest = max(longest, time.monotonic() - began)
                time.sleep(0.05)
    return longest, _served(dir)


def main() -> int:
    from tests.daemon.conftest import Box

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each attack")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    held = True
    with tempfile.TemporaryDirectory(prefix="wl", dir="/tmp") as folder:
        box = Box(Path(folder))
        pid = box.start()
        assert box.process is not None
        try:
            fuzz(box.dir, 20_000, options.seed)  # until everything is loaded and the allocator has what it takes
            before = memory(pid)
            began = time.monotonic()
            fuzz(box.dir, options.frames, options.seed + 1)
            seconds, growth = time.monotonic() - began, memory(pid) - before
            held &= growth < MOST_GROWTH
            print(f"{options.frames:,} fuzzed frames in {seconds:.0f} s: RSS {growth / 2**20:+.1f} MB", flush=True)
            for name in ATTACKS:
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM begins anew
                longest, back = _attacked(box.dir, name, options.seconds)
                most, now = memory(pid, "VmHWM"), memory(pid)
                held &= most < MOST_RSS and box.process.poll() is None
                print(
                    f"{name}, {options.seconds:.0f} s: RSS at most {most / 2**20:.0f} MB, then {now / 2**20:.0f} MB;"
                    f" longest answer {longest:.2f} s, a new client served after {back:.2f} s",
                    flush=True,
                )
            held &= "Traceback" not in box.log()
        finally:
            box.process.terminate()
            box.process.wait()
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
