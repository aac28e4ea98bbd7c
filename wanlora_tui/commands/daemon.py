"""daemon start, stop, status. How it is found, started and stopped is daemon.wire's."""

import json
import time
from argparse import Namespace

from daemon.wire.blocking import DaemonStatus, daemon_status
from daemon.wire.protocol import LIVE_STATES, PROTOCOL_VERSION
from daemon.wire.stop import stop_daemon
from presets import VERSION
from wanlora_tui.commands.common import runtime_folder, say, start_daemon
from wanlora_tui.output.formatting import count, duration, home_path


def start(args: Namespace) -> int:
    folder = args.dir
    if not start_daemon(folder):
        say(f"The daemon runs already, in {runtime_folder(folder)}.")
    return 0


def stop(args: Namespace) -> int:
    """0 when none runs any more, also when none ran: what was asked for is so. 1 when it could not be ended."""
    done = stop_daemon(args.dir)
    if not done.ran or not done.ended:
        say(done.text)
        return 0 if done.ended else 1
    if done.trainers is None:
        trainers = " Trainers keep running; the next daemon takes over."
    else:
        trainers = (
            f" {count(done.trainers, 'trainer')} {'keeps' if done.trainers == 1 else 'keep'} running; the next daemon"
            " takes over."
            if done.trainers
            else ""
        )
    say(f"{done.text}{trainers}")
    return 0


def status(args: Namespace) -> int:
    """0 when a daemon of our protocol answers, else 1."""
    seen = daemon_status(args.dir)
    if args.json:
        print(json.dumps(_facts(seen)))
    elif seen.state == "answering":
        print(_summary(seen))
    else:
        print(f"{seen.problem}")
    if seen.state == "answering" and seen.problem:
        say(f"wanlora: {seen.problem}")
    return 1 if seen.problem else 0


def _summary(seen: DaemonStatus) -> str:
    where, holder, jobs = seen.found.where, seen.found.holder, seen.jobs
    load = f": {count(len(jobs.jobs), 'job')}, {_live(seen)} of them running or queued" if jobs else ""
    since = f" for {duration(time.time() - holder.started)}" if holder and holder.started else ""
    log = f" Its log: {home_path(holder.log)}" if holder and holder.log else ""
    return (
        f"The daemon runs in {where.runtime}{load}.\nwanlora {_version(seen) or 'of another version'}, pid"
        f" {seen.pid}{since}.{log}"
    )


def _live(seen: DaemonStatus) -> int | None:
    return sum(j.state in LIVE_STATES for j in seen.jobs.jobs) if seen.jobs else None if seen.state != "none" else 0


def _version(seen: DaemonStatus) -> str:
    return (seen.hello.wanlora if seen.hello else "") or (seen.found.holder.version if seen.found.holder else "")


def _facts(seen: DaemonStatus) -> dict[str, object]:
    """For scripts, and for `wanlora attach --host` on other machines. Keys are added, none is taken away."""
    where, holder = seen.found.where, seen.found.holder
    protocol = seen.hello.version if seen.hello else (holder.protocol if holder else 0)
    return {
        "running": seen.state != "none",
        "state": seen.state,  # answering, starting, hung or none
        "pid": seen.pid or None,
        "started": holder.started if holder and holder.started else None,  # seconds since 1970
        "uptime": time.time() - holder.started if holder and holder.started else None,  # seconds
        "host": holder.host if holder else "",
        "runtime_dir": str(where.runtime),
        "control": str(where.control),
        "feed": str(where.feed),
        "state_dir": (seen.hello.state_dir if seen.hello else "") or str(where.state),
        "log": (holder.log if holder else "") or str(where.log),
        "version": _version(seen),  # of wanlora, the daemon's
        "protocol": protocol or PROTOCOL_VERSION,  # the daemon's, as far as it is known
        "client_version": VERSION,
        "client_protocol": PROTOCOL_VERSION,
        "live_jobs": _live(seen),  # null when it does not say
        "problem": seen.problem.what if seen.problem else "",
        "fix": seen.problem.fix if seen.problem else "",
    }
