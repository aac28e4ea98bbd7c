"""Asking the daemon without asyncio: a hello, in what state it is, and what a daemon of any version understands.

Where it is looked for is in daemon.wire.find; all that a client asks of its own version in daemon.wire.client.
"""

import time
import uuid
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import zmq

from daemon.errors import DaemonError, NotAnswering, NotRunning, RequestRefused, VersionMismatch
from daemon.processes.proc import age
from daemon.wire.answers import HealthReply
from daemon.wire.find import ASK_SECONDS, DaemonLocation, find, mismatch, not_running, require_daemon
from daemon.wire.paths import DaemonPaths, endpoint
from daemon.wire.protocol import (
    MAX_REPLY_BYTES,
    PROTOCOL_VERSION,
    Answer,
    AnyVersionReply,
    Done,
    Health,
    Hello,
    HelloReply,
    Jobs,
    JobsReply,
    Refused,
    Request,
    Shutdown,
    encode,
    envelope_decoder,
    reply_decoder,
)

MOST_LATE = 100  # answers to other requests that are read after the time for one

State = Literal["answering", "starting", "hung", "none"]

_any_version_decoder = msgspec.msgpack.Decoder(AnyVersionReply)


def read_reply(data: bytes, request_id: str) -> Answer | None:
    """The answer to our request; None when it is another's. Raises VersionMismatch, RequestRefused, DaemonError."""
    try:
        envelope = envelope_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise DaemonError("what answered is not a wanlora daemon") from None
    if envelope.version != PROTOCOL_VERSION:
        raise mismatch(envelope.version)
    if envelope.id != request_id:
        return None
    try:
        answer = reply_decoder.decode(data).answer
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise DaemonError(
            f"the daemon answered what this client cannot read: {e}", fix="Upgrade wanlora on both sides"
        ) from None
    if isinstance(answer, Refused):
        raise RequestRefused(answer.what, fix=answer.fix, findings=answer.findings)
    if isinstance(answer, HelloReply) and answer.version != PROTOCOL_VERSION:
        raise mismatch(answer.version)
    return answer


def ping(dir: Path | None = None, *, timeout: float = ASK_SECONDS) -> HelloReply:
    """Say hello to the daemon of `dir`, blocking. Raises NotRunning (NotAnswering when one is there) or
    VersionMismatch."""
    found = find(dir)
    request = Request(id=uuid.uuid4().hex, command=Hello(PROTOCOL_VERSION))
    with AnyVersionClient(found, timeout=timeout) as talk:
        hello = read_reply(talk.exchange(request), request.id)
    assert isinstance(hello, HelloReply), hello
    # it answers where ours should: it has just been driven away. A holder that is no more could not be replaced: the
    # disk of the lock takes nothing
    if found.holder is not None and found.holder.pid != hello.pid and (found.process or not found.holder.boot):
        raise not_running(found)
    return hello


class AnyVersionClient:
    """A short exchange with a daemon of any version, blocking. Use as `with AnyVersionClient(found) as client`.

    A daemon that knows our version answers in it; one that refuses is spoken to in its own. Only what no version
    changes is said.
    """

    def __init__(self, found: DaemonLocation, *, timeout: float = ASK_SECONDS) -> None:
        self._found, self._timeout, self.version = found, timeout, PROTOCOL_VERSION

    def __enter__(self) -> "AnyVersionClient":
        """Raises NotRunning and its kinds."""
        require_daemon(self._found, self._found.where.control)
        self._context = zmq.Context()
        self._dealer = dealer(self._context, self._found.where)
        return self

    def __exit__(self, *_: object) -> None:
        self._dealer.close(linger=0)
        self._context.term()

    def hello(self) -> HelloReply:
        """Raises NotAnswering; RequestRefused when the daemon takes no more clients; VersionMismatch when it does not
        even understand that."""
        answer = self._ask(Hello(self.version))
        if isinstance(answer, Refused) and self.version == PROTOCOL_VERSION:
            raise RequestRefused(answer.what, fix=answer.fix)
        if not isinstance(answer, HelloReply):
            raise mismatch(self.version)
        return answer

    def shutdown(self) -> bool:
        """Whether it has understood and agreed. Raises NotAnswering, VersionMismatch."""
        return isinstance(self._ask(Shutdown()), Done)

    def _ask(self, command: Hello | Shutdown) -> Any:
        data = self._exchange(command, self.version)
        if (version := envelope_decoder.decode(data).version) != self.version:
            self.version = version
            try:
                data = self._exchange(Hello(version) if isinstance(command, Hello) else command, version)
            except NotAnswering:
                raise mismatch(version) from None
        try:
            return _any_version_decoder.decode(data).answer
        except msgspec.MsgspecError:
            return None

    def jobs(self) -> JobsReply:
        """All jobs, of a daemon of our own version."""
        answer = reply_decoder.decode(self._exchange(Jobs(), PROTOCOL_VERSION)).answer
        assert isinstance(answer, JobsReply), answer
        return answer

    def health(self) -> HealthReply | None:
        """Of a daemon of our own version; None from one that does not know the question, or has no answer in time."""
        try:
            answer = reply_decoder.decode(self._exchange(Health(), PROTOCOL_VERSION)).answer
        except NotAnswering:  # it has just answered: this question takes longer
            return None
        return answer if isinstance(answer, HealthReply) else None

    def _exchange(self, command: Hello | Shutdown | Jobs | Health, version: int) -> bytes:
        return self.exchange(Request(version=version, id=uuid.uuid4().hex, command=command))

    def exchange(self, request: Request) -> bytes:
        """The reply to a request, or one in another version. Raises NotAnswering."""
        self._dealer.send(encode(request))
        deadline, late = time.monotonic() + self._timeout, 0
        while late <= MOST_LATE and self._dealer.poll(int(max(0.0, deadline - time.monotonic()) * 1000) + 1):
            data: bytes = self._dealer.recv()
            try:
                envelope = envelope_decoder.decode(data)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                raise DaemonError("what answered is not a wanlora daemon") from None
            if envelope.id == request.id or envelope.version != request.version:
                return data
            late += time.monotonic() > deadline
        raise not_running(self._found, self._timeout)


def dealer(context: "zmq.Context[Any]", where: DaemonPaths) -> Any:
    """A socket for requests."""
    found = context.socket(zmq.DEALER)
    found.setsockopt(zmq.LINGER, 0)
    found.setsockopt(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
    found.connect(endpoint(where.control))
    return found


class DaemonStatus(NamedTuple):
    """What can be said of a daemon from outside."""

    state: State
    found: DaemonLocation
    hello: HelloReply | None = None  # of an answering one
    jobs: JobsReply | None = None  # if it also speaks our version
    health: HealthReply | None = None  # if it knows the question
    problem: DaemonError | None = None  # why there is no answer, or what is wrong with it

    @property
    def pid(self) -> int:
        """0 when none runs, or when nobody knows."""
        return self.hello.pid if self.hello else self.found.holder.pid if self.found.holder else 0

    @property
    def uptime(self) -> float | None:
        """Seconds since it started, whatever the clocks of the wall have done since; None when nobody knows."""
        if self.health:
            return self.health.uptime
        process = self.found.process
        return age(process) if process else None


def daemon_status(dir: Path | None = None, *, timeout: float = ASK_SECONDS, health: bool = False) -> DaemonStatus:
    """Whether a daemon runs, and in what state it is. `health`: ask also how it does. Raises DaemonError when the state
    folder is another user's."""
    found = find(dir)
    try:
        with AnyVersionClient(found, timeout=timeout) as talk:
            hello = talk.hello()
            if hello.version != PROTOCOL_VERSION:
                return DaemonStatus("answering", found, hello, problem=mismatch(hello.version))
            jobs = talk.jobs()
            return DaemonStatus("answering", found, hello, jobs, talk.health() if health else None)
    except NotAnswering as e:
        return DaemonStatus("starting" if e.starting else "hung", found, problem=e)
    except NotRunning as e:
        return DaemonStatus("hung" if found.holder else "none", found, problem=e)
    except (VersionMismatch, RequestRefused) as e:
        return DaemonStatus("answering", found, problem=e)
