"""daemon status: whether it runs, where, and how it does. For people, scripts and what watches a machine."""

import json
from argparse import Namespace

import msgspec

from daemon.services import systemd
from daemon.wire.answers import HealthReply
from daemon.wire.blocking import DaemonStatus, daemon_status
from daemon.wire.protocol import LIVE_STATES, PROTOCOL_VERSION
from presets import VERSION
from presets.text import escaped_json, human, loss_text
from wanlora_tui.commands.common import say
from wanlora_tui.output.far_words import advised
from wanlora_tui.output.formatting import count, duration, home_path


def status(args: Namespace) -> int:
    """0 when a daemon of our protocol answers and is healthy, else 1."""
    seen = daemon_status(args.dir, health=True)
    problems = _problems(seen)
    if args.json:
        facts = _facts(seen, problems, supervised=bool(seen.pid) and seen.pid == systemd.main_pid(args.dir))
        print(escaped_json(json.dumps(facts).encode()).decode())
    elif seen.state == "answering":
        for problem in problems:
            print(advised(f"Problem: {problem}"))
        print(advised(_summary(seen)))
        if seen.health:
            print(advised("\n".join(_details(seen.health))))
    else:
        print(advised(f"{seen.problem}"))
    if seen.state == "answering" and seen.problem:
        say(f"wanlora: {seen.problem}")
    return 1 if seen.problem or problems else 0


def _problems(seen: DaemonStatus) -> list[str]:
    """What is wrong with one that answers."""
    return list(seen.health.problems) if seen.health else []


def _summary(seen: DaemonStatus) -> str:
    where, jobs = seen.found.where, seen.jobs
    load = f": {count(len(jobs.jobs), 'job')}, {_live(seen)} of them running or queued" if jobs else ""
    since = "" if (uptime := seen.uptime) is None else f" for {duration(uptime)}"
    file, why = _log(seen)
    told = f" Its log: {home_path(file)}" if file else f" It writes no log file: {why}."
    log = told if seen.found.holder else ""
    version = _version(seen)
    renew = (
        f"\nThis client is wanlora {VERSION}; renew the daemon with: wanlora daemon restart"
        if version and version != VERSION and not seen.problem
        else ""
    )
    return (
        f"The daemon runs in {where.runtime}{load}.\nwanlora {version or 'of another version'}, pid"
        f" {seen.pid}{since}.{log}{renew}"
    )


def _log(seen: DaemonStatus) -> tuple[str, str]:
    """The file in which it writes what it does, or why in none."""
    where, holder = seen.found.where, seen.found.holder
    if seen.hello and holder and holder.pid != seen.hello.pid:  # left by one before it
        return "", f"{where.lock} cannot be written either"
    if holder and holder.no_log:
        return "", holder.no_log
    return (holder.log if holder else "") or str(where.log), ""


def _details(health: HealthReply) -> list[str]:
    lines = [f"Queue: {health.paused}"] if health.paused else []
    for run in health.runs:
        doing = f", {run.doing}" if run.doing else ""
        held = "" if run.held_out is None else f", held-out loss {loss_text(run.held_out)}"
        best = "" if run.best_step is None else f" (best: step {run.best_step})"
        heard = f"heard {duration(run.quiet)} ago"
        lines.append(f"{run.name}: {run.state}{doing}, step {run.step}/{run.steps}{held}{best}, {heard}")
    if health.follow_ups:
        lines.append(f"Commands and messages under way for jobs that have ended: {health.follow_ups}")
    if health.idle_in is not None:
        lines.append(f"The idle command runs in {duration(health.idle_in)}, unless a job is submitted")
    room = ", ".join(f"{human(disk.free)} free for {home_path(disk.path)}" for disk in health.disks)
    lines.append(f"{human(health.rss)} of RAM, {count(health.connections, 'connection')}; {room}")
    return lines


def _live(seen: DaemonStatus) -> int | None:
    return sum(j.state in LIVE_STATES for j in seen.jobs.jobs) if seen.jobs else None if seen.state != "none" else 0


def _version(seen: DaemonStatus) -> str:
    return (seen.hello.wanlora if seen.hello else "") or (seen.found.holder.version if seen.found.holder else "")


def _facts(seen: DaemonStatus, problems: list[str], *, supervised: bool) -> dict[str, object]:
    """For scripts, and for `wanlora attach --host` on other machines. Keys are added, none is taken away."""
    where, holder, health = seen.found.where, seen.found.holder, seen.health
    protocol = seen.hello.version if seen.hello else (holder.protocol if holder else 0)
    log, no_log = _log(seen)
    return {
        "running": seen.state != "none",
        "state": seen.state,  # answering, starting, hung or none
        "pid": seen.pid or None,
        "started": holder.started if holder and holder.started else None,  # seconds since 1970
        "uptime": seen.uptime,  # seconds
        "host": holder.host if holder else "",
        "runtime_dir": str(where.runtime),
        "control": str(where.control),
        "feed": str(where.feed),
        "state_dir": (seen.hello.state_dir if seen.hello else "") or str(where.state),
        "log": log,
        "no_log": no_log,  # why one that runs writes no log
        "version": _version(seen),  # of wanlora, the daemon's
        "protocol": protocol or PROTOCOL_VERSION,  # the daemon's, as far as it is known
        "client_version": VERSION,
        "client_protocol": PROTOCOL_VERSION,
        "live_jobs": _live(seen),  # null when it does not say
        "problem": seen.problem.what if seen.problem else "",  # why it does not answer
        "fix": seen.problem.fix if seen.problem else "",
        "healthy": not seen.problem and not problems,
        "problems": problems,  # of one that answers, the worst first
        "supervised": supervised,  # systemd runs it
        "health": msgspec.to_builtins(health) if health else None,  # null when it does not say
    }
