"""Texts that would act on a terminal, in every field that can hold a text; and a daemon that answers with nothing else.

Structs are walked by their types, so a new field is hostile by itself.
"""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq
from msgspec import inspect

from daemon.wire import protocol as wire
from daemon.wire.paths import daemon_paths, endpoint, make_private
from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_event
from presets.text import escaped
from tests.helpers.interface.runs import Tape

# writes the clipboard, sets the title, turns red, clears, 8-bit CSI; bell, backspace, return, delete; turns the
# direction, ends the line
ATTACK = "\x1b]52;c;UFdORUQ=\x07\x1b]2;PWNED\x1b\\\x1b[31m\x9b2J\x07\x08\r\x7f\u202e\u2066\u2028\x85"
MARKUP = "[red]R[/red][@click=app.bell]k[/][link=https://x.example/]l[/link]"
HOSTILE = f"<{ATTACK}>{MARKUP}"
READABLE = "]52;c;UFdORUQ="  # what is left of it on a screen that has not obeyed
SHORT = "\x1b]2;PWNED\x07"  # for places that are narrow


def hostile(kind: Any, _inside: tuple[type, ...] = (), **given: Any) -> Any:
    """A value of a type, every text in it hostile; `given`: fields that must have a sense."""
    info = _bare(kind)
    match info:
        case inspect.StrType() | inspect.AnyType():
            return HOSTILE
        case inspect.BoolType():
            return False
        case inspect.IntType():
            return 3
        case inspect.FloatType():
            return 1.5
        case inspect.NoneType():
            return None
        case inspect.LiteralType():
            return info.values[0]
        case inspect.ListType():
            return [hostile(info.item_type, _inside)]
        case inspect.TupleType():
            return tuple(hostile(t, _inside) for t in info.item_types)
        case inspect.DictType():
            return {hostile(info.key_type, _inside): hostile(info.value_type, _inside)}
        case inspect.UnionType():
            order = (inspect.StrType, inspect.StructType, inspect.ListType, inspect.FloatType, inspect.NoneType)
            some = [t for t in map(_bare, info.types) if not (isinstance(t, inspect.StructType) and t.cls in _inside)]
            return hostile(next((t for wanted in order for t in some if isinstance(t, wanted)), some[0]), _inside)
        case inspect.StructType():
            inside = (*_inside, info.cls)
            return info.cls(**{f.name: given.get(f.name) or hostile(f.type, inside) for f in info.fields})
    raise AssertionError(f"no hostile value for {info}: add one")


def _bare(kind: Any) -> inspect.Type:
    info = kind if isinstance(kind, inspect.Type) else inspect.type_info(kind)
    return info.type if isinstance(info, inspect.Metadata) else info


def texts(kind: Any, at: str = "") -> Iterator[str]:
    """The paths of all fields of a struct that hold text, `[0]` for the items of lists."""
    info = _bare(kind)
    match info:
        case inspect.StrType() | inspect.LiteralType():
            yield at
        case inspect.ListType():
            yield from texts(info.item_type, f"{at}[0]")
        case inspect.UnionType():
            yield from dict.fromkeys(path for t in info.types for path in texts(t, at))
        case inspect.StructType():
            for field in info.fields:
                yield from texts(field.type, f"{at}.{field.name}".lstrip("."))


def poisoned(value: Any) -> Any:
    """Plain data with an attack in each of its texts."""
    match value:
        case str():
            return f"{value}{HOSTILE}"
        case list():
            return [poisoned(v) for v in value]
        case dict():
            return {key: poisoned(v) for key, v in value.items()}
    return value


def hostile_events(name: str = "orbit", kinds: tuple[str, ...] = ()) -> list[Event]:
    """One event of each kind, every text of their data hostile."""
    tape = Tape(name, steps=2)
    tape.phase("loading", 1, 3, "text encoder")
    tape.start()
    tape.finding("warning")
    tape.phase("paused", text="the disk is full")
    tape.sample(0)
    tape.step(1)
    tape.checkpoint(1)
    tape.add("changed", field="sample.negative", old="a", new="b", step=1)
    tape.add("replanned", why="out of memory", old="a", new="b")
    tape.add("log", level="info", text="a line")
    tape.add("stopped", step=1, path="checkpoints/step_1", why="asked to")
    tape.add("failed", cause="an error", next="look")
    tape.done()
    return [msgspec.structs.replace(e, data=poisoned(e.data), run=HOSTILE) for e in tape.events]


def hostile_view() -> RunView:
    """What such events add up to."""
    view = RunView()
    for event in hostile_events():
        apply_event(view, event)
    return view


def acts(text: str) -> str:
    """The first thing in a text that a terminal would act on, with what surrounds it; "" when there is none."""
    for line in text.splitlines():
        if escaped(line) != line:
            return repr(line[:2000])
    return ""


def acts_on(data: bytes) -> list[str]:
    """The attacks that reach a terminal raw, among what else a program draws with."""
    text = data.decode("utf-8", "replace")
    found = ["\x1b]52;c;UFd", "\x1b]2;PWNED", "\x1b[31m\x9b", "\x9b2J", "\u202e", "\u2066", "\u2028", "\x7f", "\x85"]
    return [f"{attack!r} in {text[max(0, at - 60) : at + 60]!r}" for attack in found if (at := text.find(attack)) >= 0]


class HostileDaemon:
    """Sockets that look like a daemon's, in `dir`; every text of every answer is an attack."""

    def __init__(self, dir: Path) -> None:
        self.dir, where = dir, daemon_paths(dir)
        make_private(where.runtime)
        self.record = hostile(
            wire.JobRecord, id=1, revision=9, state="failed", position=0, attempt=1, gpus=[0], out=f"{dir}/{HOSTILE}"
        )
        self.refuses = False
        self._context = zmq.Context()
        self._control, self._feed = self._context.socket(zmq.ROUTER), self._context.socket(zmq.XPUB)
        self._control.bind(endpoint(where.control))
        self._feed.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._feed.bind(endpoint(where.feed))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _serve(self) -> None:
        while not self._over.is_set():
            if self._feed.poll(0):
                self._feed.recv()
                self._feed.send(wire.encode(wire.Welcome(HOSTILE)))
                self._feed.send(wire.encode(wire.JobChanged(self.record)))
                self._feed.send(wire.encode(wire.Beat(HOSTILE, [])))
            if self._control.poll(20):
                sender, data = self._control.recv_multipart()
                request = wire.request_decoder.decode(data)
                reply = wire.Reply(id=request.id, answer=self._answer(request.command))
                self._control.send_multipart([sender, wire.encode(reply)])

    def _answer(self, command: wire.Command) -> wire.Answer:
        reading = (wire.Hello, wire.Jobs, wire.Show, wire.Snapshot, wire.Replay, wire.Shutdown)
        if self.refuses and not isinstance(command, reading):
            return hostile(wire.Refused)
        match command:
            case wire.Hello():
                return hostile(wire.HelloReply, version=wire.PROTOCOL_VERSION, pid=1)
            case wire.Jobs():
                return wire.JobsReply([self.record])
            case wire.Snapshot():
                return wire.SnapshotReply(self.record, hostile_view())
            case wire.Replay(since=since):
                return wire.ReplayReply([e for e in hostile_events() if e.seq > since], more=False)
            case wire.Changes():
                return hostile(wire.ChangesReply, job=self.record)
            case wire.Checkpoints():
                return hostile(wire.CheckpointsReply, job=self.record)
            case wire.Shutdown():
                return wire.Done()
        return wire.JobReply(self.record)


@contextmanager
def hostile_daemon() -> Iterator[HostileDaemon]:
    dir = Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))
    daemon = HostileDaemon(dir)
    try:
        yield daemon
    finally:
        daemon.close()
        shutil.rmtree(dir, ignore_errors=True)
