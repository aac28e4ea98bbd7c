"""Requests and the feed for clients of other machines, by [tcp] of settings.toml: through libzmq, which encrypts and
proves keys, behind gates that count.

Looked at again every second: a revoked key is cut off, an address that was taken out of the settings closes.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85

from daemon.background_io import BackgroundIO
from daemon.settings import load_settings
from daemon.tcp.gate import Gate
from daemon.wire.keys import SERVER, KeyPair, allowed_clients, read_pair, require_curve, split_address
from daemon.wire.paths import IPC_PATH_LIMIT, DaemonPaths, endpoint
from daemon.wire.protocol import MAX_REQUEST_BYTES
from daemon.zmtp.hub import most_connections
from presets.errors import UserError

log = logging.getLogger("daemon")

LOOK = 1.0  # seconds between two looks at settings and keys
GREETING_SECONDS = 10
MOST = 32  # connections of each kind
MOST_REFUSED = 100  # keys that are named in the log
DOMAIN = "wanlora"


@dataclass(frozen=True)
class Wanted:
    """What settings and keys say."""

    host: str
    port: int
    keys: KeyPair
    allowed: dict[str, str]  # public key -> name


@dataclass(frozen=True)
class NetworkClient:
    """Who a request came from, by what libzmq calls the connection."""

    identity: bytes
    socket: Any = field(compare=False, repr=False)
    remote = True
    surplus = False  # the gate has counted

    def send(self, message: bytes) -> None:
        # a client that does not read loses answers; it asks again
        self.socket.send_multipart([self.identity, message], flags=zmq.NOBLOCK)

    async def answer(self, message: bytes) -> None:
        self.send(message)

    def say_goodbye(self, message: bytes) -> None:
        self.send(message)


def read_wanted(paths: DaemonPaths) -> Wanted | None:
    """None where nothing is to be reached through the network. Raises UserError, naming what is missing for it."""
    listen = load_settings(paths.settings).tcp.listen
    if not listen:
        return None
    host, port = split_address(listen)
    require_curve()
    pair, allowed = read_pair(paths.keys / SERVER), allowed_clients(paths)
    if not allowed:
        raise UserError(
            f"no client is allowed to connect to {listen}, so it is not opened",
            where=str(paths.keys),
            fix="Allow one with: wanlora daemon keys allow KEY NAME. Or take tcp.listen out of settings.toml",
        )
    return Wanted(host, port, pair, allowed)


class Network:
    """The way in from other machines, open or closed."""

    def __init__(
        self, paths: DaemonPaths, background: BackgroundIO, welcome: bytes, listens: Callable[[], bool]
    ) -> None:
        """`welcome`: what a subscriber is told first. `listens`: whether the settings, when they were last read, wanted
        any of this."""
        self._paths, self._background, self._welcome, self._listens = paths, background, welcome, listens
        self.requests: asyncio.Queue[tuple[NetworkClient, list[bytes]]] = asyncio.Queue(16)
        self.is_heard = False  # somebody has subscribed
        self._now: Wanted | None = None
        self._complaint = ""
        self._refused: set[str] = set()
        self._context: zmq.asyncio.Context | None = None
        self._authenticator: AsyncioAuthenticator | None = None
        self._gates: list[Gate] = []
        self._feed: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open it if it is wanted. Raises UserError when it is wanted and cannot be had: half a network is none. While
        the settings cannot be read it is closed: trainers must be watched all the same."""
        try:
            await self._background(partial(load_settings, self._paths.settings), what=str(self._paths.settings))
        except UserError as e:
            self._complain(e)
            return
        await self._become(await self._wanted())

    async def run(self) -> None:
        """Follow settings and keys, without end."""
        while True:
            await asyncio.sleep(LOOK)
            if self._now is None and not self._complaint and not self._listens():
                continue
            try:
                await self._become(await self._wanted())
                self._complaint = ""
            except UserError as e:
                self._complain(e)
                await self.close()

    def _complain(self, error: UserError) -> None:
        """Once."""
        if str(error) != self._complaint:
            self._complaint = str(error)
            log.warning("closed to the network: %s", error)

    async def _wanted(self) -> Wanted | None:
        def read() -> Wanted | None:
            return read_wanted(self._paths)

        return await self._background(read, what=str(self._paths.settings))

    async def _become(self, wanted: Wanted | None) -> None:
        """Raises UserError."""
        before = self._now
        if wanted == before:
            return
        if wanted is None or before is None or replace(before, allowed=wanted.allowed) != wanted:
            await self.close()
            if wanted is not None:
                await self._open(wanted)
        elif before.allowed.keys() - wanted.allowed.keys():
            log.info("a key was revoked: all clients from the network must show theirs again")
            self._now = wanted  # before anybody comes back
            for gate in self._gates:
                gate.cut_all()
        else:
            self._now = wanted

    async def _open(self, wanted: Wanted) -> None:
        self._now = wanted
        self._context = zmq.asyncio.Context()
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(DOMAIN, self)
        router = self._socket(zmq.ROUTER, wanted.keys)
        router.setsockopt(zmq.SNDHWM, 32)
        self._feed = self._socket(zmq.XPUB, wanted.keys)
        self._feed.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._feed.setsockopt(zmq.SNDHWM, 5000)
        most = max(2, min(MOST, most_connections() // 8))
        try:
            for number, sock in enumerate((router, self._feed)):
                behind = self._paths.state / f"tcp{number}.sock"
                if len(str(behind).encode()) > IPC_PATH_LIMIT:
                    raise UserError("its path is too long for a socket", where=str(behind), fix="Use a shorter --dir")
                sock.bind(endpoint(behind))
                behind.chmod(0o600)
                gate = Gate(behind, most, MAX_REQUEST_BYTES, subscribers=sock is self._feed)
                self._gates.append(gate)
                await gate.listen(wanted.host, wanted.port + number)
        except (OSError, zmq.ZMQError) as e:
            await self.close()
            raise UserError(
                f"cannot listen at {wanted.host}, ports {wanted.port} and {wanted.port + 1}: {e.strerror or e}",
                where=f"{self._paths.settings}, tcp.listen",
                fix="Choose another address or port; the feed takes the port behind it",
            ) from None
        self._tasks = [asyncio.create_task(self._receive(router)), asyncio.create_task(self._subscriptions())]
        log.info(
            "open to the network at %s, ports %d and %d, for %s",
            wanted.host,
            wanted.port,
            wanted.port + 1,
            ", ".join(wanted.allowed.values()),
        )

    def _socket(self, kind: int, keys: KeyPair) -> Any:
        assert self._context is not None
        found = self._context.socket(kind)
        found.setsockopt(zmq.LINGER, 500)
        found.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
        found.setsockopt(zmq.RCVHWM, 16)
        found.setsockopt(zmq.HANDSHAKE_IVL, 1000 * GREETING_SECONDS)
        # without an answer of the authenticator nobody comes in
        found.setsockopt(zmq.ZAP_DOMAIN, DOMAIN.encode())
        found.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        found.setsockopt(zmq.CURVE_SERVER, 1)
        found.setsockopt(zmq.CURVE_PUBLICKEY, keys.bytes[0])
        found.setsockopt(zmq.CURVE_SECRETKEY, keys.bytes[1])
        return found

    def callback(self, domain: str, key: bytes) -> bool:
        """The authenticator's question: whether a client with this public key may come in."""
        public = z85.decode(key).hex()
        name = self._now.allowed.get(public) if self._now else None
        if name is not None:
            log.info("%s connects from the network", name)
        elif public not in self._refused and len(self._refused) < MOST_REFUSED:  # not a line for each try
            self._refused.add(public)
            log.warning("a client with the key %s wanted to connect from the network, and was refused", public)
        return name is not None

    async def _receive(self, router: Any) -> None:
        while True:
            identity, *frames = await router.recv_multipart()
            await self.requests.put((NetworkClient(identity, router), frames))

    async def _subscriptions(self) -> None:
        while True:
            self.is_heard = (await self._feed.recv()).startswith(b"\1")  # \0 comes when the last one has gone
            if self.is_heard:
                self.publish([self._welcome])

    def publish(self, messages: list[bytes]) -> None:
        """Never waits: a subscriber that is far behind loses them."""
        if self._feed is not None:
            for message in messages:
                self._feed.send(message, flags=zmq.NOBLOCK)

    async def close(self) -> None:
        """Nothing listens any more."""
        self._now = self._feed = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(gate.close() for gate in self._gates), return_exceptions=True)
        self._tasks, self._gates = [], []
        if self._authenticator is not None and self._context is not None:
            self._authenticator.stop()
            self._context.destroy(linger=0)
            self._authenticator = self._context = None
            for number in range(2):
                Path(self._paths.state / f"tcp{number}.sock").unlink(missing_ok=True)
