"""jobs.wait: until jobs have ended, in silence. Line by line it is wanlora_tui.commands.jobs.watch's."""

import asyncio
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from daemon.errors import NotRunning, RequestRefused, VersionMismatch
from daemon.wire.client import Client
from daemon.wire.connection import SILENCE
from daemon.wire.protocol import ENDED_STATES, PROTOCOL_VERSION, Beat, JobChanged, JobRecord, Welcome
from wanlora_tui.commands.common import say
from wanlora_tui.commands.jobs.watch import OUTCOMES
from wanlora_tui.output.formatting import ending


def wait(args: Namespace) -> int:
    """One line for each job when it has ended. 0 when all are done, 1 when one failed or was cancelled, else 75; with
    --any that of the first."""
    ended: list[JobRecord] = []
    try:
        asyncio.run(wait_for(args.dir, args.jobs, ended, told=set(args.told), first=args.any))
    except VersionMismatch as e:
        _go_on_renewed(args, [r.id for r in ended])
        again = shlex.join([*(["--"] if any(job.startswith("-") for job in args.jobs) else []), *args.jobs])
        raise VersionMismatch(
            f"{e.what}, so this one cannot see any more what becomes of the jobs; they go on",
            fix=f"{e.fix}. Then wait again: wanlora wait {again}",
        ) from None
    except KeyboardInterrupt:
        say("Left. What was waited for goes on.")
        return 130
    codes = {OUTCOMES[record.state] for record in ended}
    return 1 if 1 in codes else max(codes)


def _go_on_renewed(args: Namespace, told: list[int]) -> None:
    """Go on as the wanlora that is installed by now, when the daemon was upgraded in place and that speaks with it: it
    takes the place of this process. Else come back."""
    if args.host or "connect" in args:  # the daemon's wanlora is another machine's
        return
    asked = [sys.executable, "-c", "from daemon.wire.protocol import PROTOCOL_VERSION as v; print(v)"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    if said.returncode or said.stdout.strip() == str(PROTOCOL_VERSION):
        return
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    options = [*(["--any"] if args.any else []), *(["--dir", str(args.dir)] if args.dir else [])]
    options += [word for job in [*args.told, *told] for word in ("--told", str(job))]
    say("wanlora was upgraded: going on with the new one.")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *program[1:], "wait", *options, "--", *args.jobs])


async def wait_for(
    folder: Path | None, names: list[str], ended: list[JobRecord], *, told: set[int], first: bool
) -> None:
    """Put the jobs' records into `ended` once they, or the `first` of them, have; each is told as it comes, but for
    those that were `told` before. Waits through the end of a daemon and the start of the next. Raises DaemonError, when
    the daemon cannot be reached at first, speaks another version by now, or a job is not there."""
    async with Client(folder) as client:
        left = {record.id: record for record in [await client.show(name) for name in names]}
        if client.note:
            say(client.note)
        held: dict[int, str] = {}  # of those that are, why: who waits may be the one that has to do something

        def take(record: JobRecord) -> bool:
            """Whether that was all."""
            if record.id in left and record.state in ENDED_STATES and not (first and ended):
                del left[record.id]
                ended.append(record)
                if record.id not in told:
                    print(f"{record.name} {record.state}", flush=True)
                if record.state != "done" and record.id not in told:
                    say(ending(record.name, record.state, record.outcome))
            if record.id in left and record.held != held.get(record.id, ""):
                held[record.id] = record.held
                if record.held:
                    say(f"{record.name}: {record.held}")
            return not left or (first and bool(ended))

        for record in list(left.values()):
            if take(record):
                return
        say(f"Waiting for {', '.join(record.name for record in left.values())}.")
        away = asyncio.create_task(_say_when_away(heard := asyncio.Event()))
        try:
            while True:
                with suppress(NotRunning):  # a daemon that ended before its feed has begun
                    async for message in client.feed():
                        heard.set()
                        look: list[int] = []
                        match message:
                            case JobChanged(job=record) if take(record):
                                return
                            case Welcome():
                                look = list(left)
                            case Beat(runs=runs):  # what ended long ago, or was removed, is in none
                                live = {run.job for run in runs if run.state not in ENDED_STATES}
                                look = [job for job in left if job not in live]
                        for job in look:
                            with suppress(NotRunning):
                                if take(await _show(client, left[job])):
                                    return
                await asyncio.sleep(1.0)
        finally:
            away.cancel()


async def _show(client: Client, record: JobRecord) -> JobRecord:
    try:
        return await client.show(record.id)
    except RequestRefused as e:
        raise RequestRefused(f"{record.name} is not there any more: {e.what}", fix=e.fix) from None


async def _say_when_away(heard: asyncio.Event) -> None:
    while True:
        try:
            await asyncio.wait_for(heard.wait(), 2 * SILENCE)
            heard.clear()
            await asyncio.sleep(SILENCE)
        except TimeoutError:
            say("The daemon does not answer. Still waiting: the next one takes over.")
            await heard.wait()
