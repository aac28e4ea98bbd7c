"""daemon start, stop, status."""

import json
import time
from argparse import Namespace

from daemon.wire.find import Sight, look
from daemon.wire.protocol import LIVE_STATES, PROTOCOL_VERSION
from daemon.wire.stop import stop_daemon
from presets import VERSION
from wanlora_tui.commands.common import daemon_dir, runtime_folder, say, start_daemon
from wanlora_tui.output.formatting import count, duration, home_path


def start(args: Namespace) -> int:
    folder = daemon_dir(args)
    if not start_daemon(folder):
        say(f"The daemon runs already, in {runtime_folder(folder)}.")
    return 0


def stop(args: Namespace) -> int:
    """0 when none runs any more, also when none ran: what was asked for is so. 1 when it could not be ended."""
    done = stop_daemon(daemon_dir(args))
    if not done.ran or not done.ended:
        say(done.text)
        return 0 if done.ended else 1
    if done.trainers is None:
        goes_on = " Trainers go on; the next daemon takes over."
    else:
        goes_on = (
            f" {count(done.trainers, 'trainer')} {'goes' if done.trainers == 1 else 'go'} on; the next daemon takes"
            " over."
            if done.trainers
            else ""
        )
    say(f"{done.text}{goes_on}")
    return 0


def status(args: Namespace) -> int:
    """0 when a daemon of our protocol answers, else 1."""
    sight = look(daemon_dir(args))
    if args.json:
        print(json.dumps(_facts(sight)))
    elif sight.state == "answering":
        print(_summary(sight))
    else:
        print(f"{sight.problem}")
    if sight.state == "answering" and sight.problem:
        say(f"wanlora: {sight.problem}")
    return 1 if sight.problem else 0


def _summary(sight: Sight) -> str:
    where, holder, jobs = sight.found.where, sight.found.holder, sight.jobs
    told = f": {count(len(jobs.jobs), 'job')}, {_live(sight)} of them running or queued" if jobs else ""
    since = f" for {duration(time.time() - holder.started)}" if holder and holder.started else ""
    log = f" Its log: {home_path(holder.log)}" if holder and holder.log else ""
    return (
        f"The daemon runs in {where.runtime}{told}.\nwanlora {_version(sight) or 'of another version'}, pid"
        f" {sight.pid}{since}.{log}"
    )


def _live(sight: Sight) -> int | None:
    return sum(j.state in LIVE_STATES for j in sight.jobs.jobs) if sight.jobs else None if sight.state != "none" else 0


def _version(sight: Sight) -> str:
    return (sight.hello.wanlora if sight.hello else "") or (sight.found.holder.version if sight.found.holder else "")


def _facts(sight: Sight) -> dict[str, object]:
    """For scripts, and for `wanlora attach --host` on other machines. Keys are added, none is taken away."""
    where, holder = sight.found.where, sight.found.holder
    protocol = sight.hello.version if sight.hello else (holder.protocol if holder else 0)
    return {
        "running": sight.state != "none",
        "state": sight.state,  # answering, starting, hung or none
        "pid": sight.pid or None,
        "started": holder.started if holder and holder.started else None,  # seconds since 1970
        "uptime": time.time() - holder.started if holder and holder.started else None,  # seconds
        "host": holder.host if holder else "",
        "runtime_dir": str(where.runtime),
        "control": str(where.control),
        "feed": str(where.feed),
        "state_dir": (sight.hello.state_dir if sight.hello else "") or str(where.state),
        "log": (holder.log if holder else "") or str(where.log),
        "version": _version(sight),  # of wanlora, the daemon's
        "protocol": protocol or PROTOCOL_VERSION,  # the daemon's, as far as it is known
        "client_version": VERSION,
        "client_protocol": PROTOCOL_VERSION,
        "live_jobs": _live(sight),  # null when it does not say
        "problem": sight.problem.what if sight.problem else "",
        "fix": sight.problem.fix if sight.problem else "",
    }
