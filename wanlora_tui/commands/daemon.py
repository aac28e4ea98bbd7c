"""daemon start, stop, status."""

import asyncio
import json
from argparse import Namespace

from daemon.client import Client, NotRunning
from daemon.paths import places
from daemon.protocol import LIVE_STATES, PROTOCOL_VERSION, RUNNING_STATES, JobRecord
from wanlora_tui.commands.link import daemon_dir, is_running, say, start_daemon
from wanlora_tui.text import count, home_path


def start(args: Namespace) -> int:
    folder = daemon_dir(args)
    if is_running(folder):
        say(f"The daemon runs already, in {home_path(str(places(folder).runtime))}.")
    else:
        start_daemon(folder)
    return 0


def stop(args: Namespace) -> int:
    """0 also when none ran: what was asked for is so."""

    async def go() -> int:
        async with Client(daemon_dir(args)) as client:
            running = sum(j.state in RUNNING_STATES for j in await client.jobs())
            await client.shutdown()
            return running

    try:
        running = asyncio.run(go())
    except NotRunning:
        say("No daemon runs.")
        return 0
    goes_on = f" {count(running, 'trainer')} {'goes' if running == 1 else 'go'} on; the next daemon takes over." if running else ""
    say(f"The daemon has ended.{goes_on}")
    return 0


def status(args: Namespace) -> int:
    """0 when the daemon answers, 1 when none runs."""
    where = places(daemon_dir(args))

    async def go() -> list[JobRecord] | None:
        try:
            async with Client(daemon_dir(args)) as client:
                return await client.jobs()
        except NotRunning:
            return None

    jobs = asyncio.run(go())
    live = sum(j.state in LIVE_STATES for j in jobs or [])
    if args.json:
        print(json.dumps({"running": jobs is not None, "control": str(where.control), "feed": str(where.feed), "protocol": PROTOCOL_VERSION, "live_jobs": live}))
    elif jobs is None:
        print(f"No daemon runs in {where.runtime}. It starts by itself with `wanlora` or `wanlora submit`.")
    else:
        print(f"The daemon runs in {where.runtime}: {count(len(jobs), 'job')}, {live} of them running or queued.")
    return 0 if jobs is not None else 1
