"""Writes docs/protocol.md from the message types and the comments beside their fields:
`python -m daemon.protocol_page > docs/protocol.md`."""

import ast
import inspect
import io
import re
import sys
import textwrap
import tokenize
import types
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from daemon.wire import client, connection
from daemon.wire import protocol as wire
from daemon.zmtp import hub, peer

CLIENT = f"""\
import json, sys, uuid
from pathlib import Path

import zmq
from msgspec import msgpack  # or the package msgpack, with packb and unpackb

state, name = sys.argv[1:]  # the state folder, as `wanlora daemon status --json` says it; a job
folder = json.loads((Path(state) / "daemon.lock").read_text().splitlines()[1])["runtime"]
control, feed = zmq.Context.instance().socket(zmq.DEALER), zmq.Context.instance().socket(zmq.SUB)
feed.subscribe(b"")
feed.connect(f"ipc://{{folder}}/feed.sock")
control.connect(f"ipc://{{folder}}/control.sock")


def ask(kind, **fields):
    command = {{"type": kind, **fields}}
    control.send(msgpack.encode({{"version": {wire.PROTOCOL_VERSION}, "id": uuid.uuid4().hex, "command": command}}))
    answer = msgpack.decode(control.recv())["answer"]
    return answer if answer["type"] != "Refused" else sys.exit(f"{{answer['what']}}. {{answer['fix']}}")


for job in ask("Jobs")["jobs"]:
    print(job["id"], job["name"], job["state"])
job, last = ask("Show", job=name)["job"], 0
while job["state"] not in ("done", "failed", "stopped", "cancelled"):
    message = msgpack.decode(feed.recv())  # a Welcome first; later at least a Beat in every second
    if message["type"] != "RunEvent" or message["job"] == job["id"] and message["event"]["seq"] > last:
        job, more = ask("Show", job=str(job["id"]))["job"], True
        while more:  # everything since the last event, whatever was published or lost meanwhile
            page = ask("Replay", job=str(job["id"]), since=last)
            for event in page["events"]:
                print(event["seq"], event["kind"], event["data"])
                last = event["seq"]
            more = page["more"]
"""
INTRO = f"""\
# The protocol between daemon and clients

<!-- Made by `python -m daemon.protocol_page`. Change the message types and the comments beside their fields instead of
this page. -->

What the dashboard and the commands say to the daemon, any other program may say, too. This is version
{wire.PROTOCOL_VERSION} of the protocol.

## Sockets

The daemon has two ZeroMQ sockets, in a folder that only its user may enter. The folder can change while the daemon runs
(a login manager takes it away, say); `wanlora daemon status --json` says where they are, and the second line of
`daemon.lock` in the state folder (JSON, key `runtime`), which is kept true. That the lock lies there says nothing: a
daemon runs while somebody holds a `flock` on it.

| socket | connect with | carries |
|---|---|---|
| `control.sock` | DEALER | a request from the client, one answer to each, in their order |
| `feed.sock` | SUB, subscribed to everything (`b""`) | what happens, as it happens |

The protocol below ZeroMQ is ZMTP 3 with the mechanism NULL. Other topics than `b""` are passed over. From another
machine the same two sockets are reached through ssh, or by TCP with CURVE, where the feed has the port behind that of
the requests: see [security.md](security.md).

A message is one frame: a map in [MessagePack](https://msgpack.org). Requests, answers and feed messages have the key
`type`, which names their kind.

## Versions

- Fields that a side does not know are passed over, on both sides and at every level. Fields with a default may be left
  out. So fields are added without a new version.
- Feed messages of a kind that a client does not know are to be passed over. A request of a kind that the daemon does
  not know is refused.
- The version rises when something changes that old clients would misunderstand. `Hello`, `HelloReply`, `Shutdown`,
  `Done`, `Refused`, and `version` and `id` of every request and answer, stay as they are in all versions. `Hello` and
  `Shutdown` of any version are answered in that version; anything else of another version gets a `Refused` that says
  which side to upgrade.

## Asking

A request has an `id` that its client makes up: up to {wire.MAX_ID} characters that nobody else uses, such as a UUID.
The same id again gets the same answer and acts once, also when the daemon was started anew in between. So when no
answer comes, ask again with the same id, on a new socket. `Refused` means that the request was understood and nothing
was done.

## Following without loss

The feed can lose messages: when a client reads too slowly, or the daemon starts anew. Every event of a run has a `seq`
that rises by one from 1, so a loss is seen and made good:

1. Subscribe, and wait for the `Welcome`: nothing that is published after it is missed.
2. Ask for a `Snapshot` (what all events up to `view.last_seq` add up to) or a `Replay` since the last event that you
   have, page after page while `more` is true.
3. Apply each `RunEvent` whose `seq` is the next one; drop those that you have. At a gap, at another `Welcome`, at a
   `Beat` whose `last_seq` or `state` is not yours, or whose `epoch` has changed, go back to 2.
4. When there is no message for three seconds, the daemon does not answer or the line is cut. Training does not suffer.
   Connect anew.

## A client

It lists the jobs and follows one to its end. `wanlora jobs` and `wanlora watch --json` do the same.

```python
{CLIENT}```
"""
LIMITS = f"""\
## Limits

Whoever goes beyond them is cut off or refused; others notice nothing. ZeroMQ connects again by itself.

| what | limit |
|---|---|
| a request | {wire.MAX_REQUEST_BYTES // 2**20} MiB, {peer.MOST_FRAMES} frames |
| an answer | {wire.MAX_REPLY_BYTES // 2**20} MiB |
| a feed message | {wire.MAX_MESSAGE_BYTES // 2**20} MiB |
| a page of a replay | {wire.REPLAY_PAGE} events, fewer when they are large |
| requests of one client that wait for an answer | {wire.LANE}; more are refused |
| clients | {hub.MOST} on each socket, fewer where few files may be open; one more is told so in place of an answer |
| time for the greeting | {hub.GREETING_LOOKS * hub.LOOK:.0f} s |
| heartbeats and subscriptions | {peer.COMMANDS:.0f} at once, {peer.COMMANDS_PER_SECOND:.0f} in a second |
| what a subscriber has not read | {hub.Limits.behind_bytes // 2**20} MiB; what comes then it does not get |
| what all clients together have not read | {hub.Limits.unsent_bytes // 2**20} MiB; then who reads nothing is cut off |
| requests of all clients that are not finished | {hub.Limits.held_bytes // 2**20} MiB; then who holds most is cut off |
"""


BELOW = "here and below"


def comments(kind: type[Struct]) -> dict[str, str]:
    """Field -> what the comment behind it, or the lines of comment above it, say."""
    text = textwrap.dedent(inspect.getsource(kind))
    lines = text.splitlines()
    said: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            said[token.start[0]] = token.string.lstrip("# ")
    found = {}
    body = ast.parse(text).body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            line = node.lineno - 1
            while line in said and lines[line - 1].lstrip().startswith("#"):
                above.insert(0, said[line])
                line -= 1
            behind = [said[node.end_lineno]] if node.end_lineno in said else []
            found[node.target.id] = " ".join(above + behind)
    return found


def structs_in(kind: Any) -> list[type[Struct]]:
    """The message types that a field's type names."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return [kind]
    return [found for part in get_args(kind) for found in structs_in(part)]


def type_text(kind: Any) -> str:
    """`int`, `list of Event`, `one of "a", "b"`, `map of str to float`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(f"`{value!r}`".replace("'", '"') for value in args)
    if origin in (Union, types.UnionType):
        if kind in (wire.Command, wire.Answer):
            return "map"
        return " or ".join("nil" if arg is type(None) else type_text(arg) for arg in args)
    if origin in (list, tuple):
        return f"list of {type_text(args[0])}"
    if origin is dict:
        return f"map of {type_text(args[0])} to {type_text(args[1])}"
    if kind is Any:
        return "anything"
    return f"[{kind.__name__}](#{kind.__name__.lower()})" if structs_in(kind) else f"{kind.__name__}"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "must be given"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, Struct):
        return "all defaults"
    return "nil" if value is None else f"`{msgspec.json.encode(value).decode()}`"


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text[:1].upper() + text[1:] if not re.match(r"[A-Za-z_]+[.(_]", text) else text


def section(kind: type[Struct], below: dict[str, str], *, answer: str = "") -> str:
    """One message type: what it is, and its fields. `below`: what was said before of fields of a name, for all that
    follow (`here and below`)."""
    own = " ".join((kind.__dict__.get("__doc__") or "").split())
    out = [f"### {kind.__name__}\n", f"{own} Answered with [{answer}](#{answer.lower()}).\n" if answer else f"{own}\n"]
    if fields := msgspec.structs.fields(kind):
        said = comments(kind)
        for name, text in said.items():
            if BELOW in text:
                said[name] = below[name] = text.replace(f", {BELOW}", "").replace(BELOW, "").strip(" ;,")
        if kind.__struct_config__.array_like:
            out.append("As a list of these values in their order:\n")
        out.append("| field | type | default | what it is |\n|---|---|---|---|")
        for f in fields:
            about = _cell(said.get(f.name) or below.get(f.name, ""))
            out.append(f"| `{f.encode_name}` | {_cell_type(f.type)} | {_default(f)} | {about} |")
        out.append("")
    return "\n".join(out)


def _cell_type(kind: Any) -> str:
    return type_text(kind).replace("|", "\\|")


def answers() -> dict[str, str]:
    """Request -> its answer, as our own client expects it."""
    tree = ast.parse(inspect.getsource(client) + inspect.getsource(connection))
    found, named = {"Health": "HealthReply"}, {}  # which `wanlora daemon status` asks (daemon.wire.blocking)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            named[node.targets[0].id, node.lineno] = node.value
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_ask":
            asked, answer = node.args[0], node.args[1]
            if isinstance(asked, ast.Name):  # the nearest assignment above it
                lines = [line for name, line in named if name == asked.id and line < node.lineno]
                asked = named[asked.id, max(lines)] if lines else asked
            if isinstance(asked, ast.Call):
                found[_name(asked.func)] = _name(answer)
    return found


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def others(kinds: list[type[Struct]]) -> list[type[Struct]]:
    """The types that these are made of, and are not among them."""
    found: list[type[Struct]] = []
    waiting = list(kinds)
    while waiting:
        for field in msgspec.structs.fields(waiting.pop(0)):
            for kind in structs_in(field.type):
                if kind not in found and kind not in kinds:
                    found.append(kind)
                    waiting.append(kind)
    return found


def messages() -> dict[str, list[type[Struct]]]:
    """Heading -> message types."""
    return {
        "Around every request and answer": [wire.Request, wire.Reply],
        "Requests": list(get_args(wire.Command)),
        "Answers": list(get_args(wire.Answer)),
        "Feed messages": list(get_args(wire.Feed)),
    }


def page() -> str:
    """The whole page."""
    groups, expected = messages(), answers()
    every = [kind for kinds in groups.values() for kind in kinds]
    out, below = [INTRO, LIMITS], dict[str, str]()
    for heading, kinds in (groups | {"What they are made of": others(every)}).items():
        out.append(f"## {heading}\n")
        out += [section(kind, below, answer=expected.get(kind.__name__, "")) for kind in kinds]
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
