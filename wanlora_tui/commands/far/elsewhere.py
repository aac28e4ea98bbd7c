"""What --host makes of a command: it talks to the daemon of another machine, or runs there as it would here.

What a job file needs that is sent along is wanlora_tui.commands.far.job_there's.
"""

import argparse
import codecs
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TextIO

from daemon.wire.paths import daemon_paths
from presets.errors import UserError
from wanlora_tui.commands.common import say
from wanlora_tui.remote.connection import Connection, connected
from wanlora_tui.remote.far_shell import marked, new_mark, running
from wanlora_tui.remote.far_terminal import on_terminal, wanlora_there
from wanlora_tui.terminal.streams import is_terminal
from wanlora_tui.transfer.retrying import LostConnection

CAN_GO_ON, INTERRUPTED, LINE_BROKE = 75, 130, 255
END_SECONDS = 5.0  # for what a command that is interrupted still says


def elsewhere(args: Namespace, handler: Callable[[Namespace], int]) -> int:
    """Run a command line with --host and give its exit code. Raises UserError."""
    match args.far:
        case "either" if not names_file(args.job):
            far = "daemon"
        case "either":
            far = "there"
        case far:
            pass
    match far:
        case "daemon":
            with daemon_of(args):
                return handler(args)
        case "there":
            with connection_of(args, daemon=False) as there:
                return run_there(there, command_line(args))
        case "job":
            from wanlora_tui.commands.far.job_there import run_with_job

            with connection_of(args, daemon=False) as there:
                try:
                    return run_with_job(there, args)
                except LostConnection as e:
                    say(f"wanlora: {e}")
                    return CAN_GO_ON
    raise UserError("this has no --host", fix="Hand a job to the daemon there: wanlora submit JOB")


def names_file(job: str) -> bool:
    """Whether a job is named by its file."""
    return job.endswith(".toml") or "/" in job


@contextmanager
def connection_of(args: Namespace, *, daemon: bool = True) -> Iterator[Connection]:
    """To the machine of --host. `daemon`: with the sockets of its daemon, which is started if none runs."""
    with connected(args.host, daemon_paths(args.dir).state, args.remote_wanlora, daemon=daemon) as there:
        if there.has_started:
            say(f"Started the daemon on {args.host}.")
        yield there


@contextmanager
def daemon_of(args: Namespace) -> Iterator[Connection]:
    """Within, `args.dir` is where the daemon of --host is reached, and `args.there` the connection."""
    with connection_of(args) as there:
        args.dir, args.there = there.folder, there
        yield there


# --- a command there ------------------------------------------------------------------------------------------


def command_line(args: Namespace, **instead: Any) -> list[str]:
    """The arguments as the other machine gets them, without what is of this one (--host, --dir). `instead`: other
    values for some; None leaves them out. A path written as `box:path` is a path there."""
    parser: argparse.ArgumentParser = args.parser
    options: list[str] = []
    positionals: list[str] = []
    for action in parser._actions:
        value = instead.get(action.dest, getattr(args, action.dest, None))
        if value is None or action.dest in ("help", "dir", "host", "remote_wanlora", "via", "leash", "version"):
            continue
        if isinstance(action, argparse._SubParsersAction):
            continue
        if action.nargs == 0:
            options += [action.option_strings[-1]] if value != action.default else []
            continue
        texts = [_path_there(str(v), args.host) for v in (value if isinstance(value, list) else [value])]
        if not action.option_strings:
            positionals += texts
        elif isinstance(action, argparse._AppendAction):
            options += [f"{action.option_strings[-1]}={text}" for text in texts]
        elif value != action.default:
            options += [f"{action.option_strings[-1]}={texts[0]}"]
    dashes = ["--"] if any(text.startswith("-") for text in positionals) else []
    return [*parser.prog.split()[1:], *options, *dashes, *positionals]


def _path_there(text: str, host: str) -> str:
    path = text.removeprefix(f"{host}:")
    # commands begin in the home folder there, and no shell looks at what they are given
    return text if path == text else path.removeprefix("~/") or "."


def run_there(there: Connection, argv: list[str]) -> int:
    """Run wanlora there on this terminal, or with these streams; its exit code. Ctrl+C and its kind end it there, too.
    Raises UserError when the line broke."""
    if all(map(is_terminal, (sys.stdin, sys.stdout, sys.stderr))):
        code = on_terminal(there, argv)
    else:
        code = _with_streams(there, wanlora_there(there, ["--leash", *argv]))
    if code == LINE_BROKE or code < 0:
        raise UserError(f"the connection to {there.host} broke", fix=f"Try: ssh {there.host}")
    return code


def _with_streams(there: Connection, argv: list[str]) -> int:
    """Its streams become ours, without what start files of the shell there print. Its standard input is open for as
    long as somebody here waits (wanlora_tui.terminal.leash)."""
    mark = new_mark()
    process = subprocess.Popen(
        there.command(["sh", "-c", marked(running(argv), mark)], "-T"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    talk = threading.Thread(target=_hand_on, args=(process.stderr, sys.stderr, mark), daemon=True)
    talk.start()
    try:
        try:
            _hand_on(process.stdout, sys.stdout, mark)
            code = process.wait()
        except KeyboardInterrupt:
            process.stdin.close()
            threading.Timer(END_SECONDS, process.kill).start()
            _hand_on(process.stdout, sys.stdout, "")
            process.wait()
            code = INTERRUPTED
        talk.join()
        return code
    finally:
        process.kill()
        process.wait()


def _hand_on(source: IO[bytes], to: TextIO, mark: str) -> None:
    """All that comes after a line with the mark; all there was if there is none. As text, so that it passes the gate
    for what is printed: the machine there is not trusted with this terminal."""
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    before: list[bytes] = []
    for line in source if mark else ():
        if line.strip() == mark.encode():
            before = []
            break
        before.append(line)
    to.write(text.decode(b"".join(before)))
    while data := source.read1(2**16):  # type: ignore[attr-defined]
        to.write(text.decode(data))
        to.flush()
    to.write(text.decode(b"", True))
    to.flush()
