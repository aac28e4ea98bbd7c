"""daemon start, stop, restart, notify-test. How it is found, started and stopped is daemon.wire's; how it does,
wanlora_tui.commands.daemon_status's; who starts it with the machine, wanlora_tui.commands.install's."""

import asyncio
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from daemon.errors import DaemonError
from daemon.services import systemd
from daemon.wire.blocking import DaemonStatus, daemon_status
from daemon.wire.client import Client
from daemon.wire.protocol import RUNNING_STATES
from daemon.wire.start import ensure_running
from daemon.wire.stop import Stopped, stop_daemon
from presets.errors import UserError
from wanlora_tui.commands.common import runtime_folder, say, start_daemon
from wanlora_tui.output.formatting import count

TEST_SECONDS = 90.0  # for all messages: the daemon gives up before


def start(args: Namespace) -> int:
    folder = args.dir
    if not start_daemon(folder):
        say(f"The daemon runs already, in {runtime_folder(folder)}.")
    return 0


def stop(args: Namespace) -> int:
    """0 when none runs any more, also when none ran: what was asked for is so. 1 when it could not be ended."""
    done = end(args.dir)
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
    again = " systemd starts it again at the next login or boot; `wanlora daemon uninstall` ends that."
    say(f"{done.text}{trainers}{again if systemd.is_installed(args.dir) else ''}")
    return 0


def end(folder: Path | None) -> Stopped:
    """End the daemon for good, also where systemd would start it again because it had to be killed. Raises
    DaemonError."""
    done = stop_daemon(folder)
    if done.ran and systemd.is_installed(folder):
        with suppress(DaemonError):  # no systemd in this shell
            systemd.stop(folder)
    return done


def restart(args: Namespace) -> int:
    """The daemon of this installation in place of the one that runs, of whatever version. Trainers keep running and are
    taken over, the queue stays as it is."""
    folder = args.dir
    before = daemon_status(folder)
    if before.state != "none" and before.pid and before.pid == systemd.main_pid(folder):
        systemd.restart(folder)
    elif before.state != "none":
        ended = stop_daemon(folder)
        if not ended.ended:
            raise UserError(ended.text.rstrip("."), fix="The new one was not started")
    ensure_running(folder)
    after = daemon_status(folder)
    if after.problem:
        raise after.problem
    say(f"{_ended(before)}wanlora {_version(after)} (pid {after.pid}) runs{_taken_over(after)}.")
    if systemd.starts_another(folder) and after.pid == systemd.main_pid(folder):
        say(
            "It is that of another installation, which systemd starts. Have it start this one with: wanlora daemon"
            " install"
        )
    return 0


def _version(seen: DaemonStatus) -> str:
    return (seen.hello.wanlora if seen.hello else "") or (seen.found.holder.version if seen.found.holder else "")


def _ended(before: DaemonStatus) -> str:
    if before.state == "none":
        return "No daemon ran. "
    return f"wanlora {_version(before) or 'of another version'} (pid {before.pid or 'unknown'}) has ended. "


def _taken_over(after: DaemonStatus) -> str:
    jobs = after.jobs.jobs if after.jobs else []
    running = sum(j.state in RUNNING_STATES for j in jobs)
    queued = sum(j.state == "queued" for j in jobs)
    taken = [f"has taken over {count(running, 'trainer')}"] if running else []
    waits = [f"{count(queued, 'job')} {'waits' if queued == 1 else 'wait'} as before"] if queued else []
    return "".join(f"; {part}" for part in [*taken, *waits])


def notify_test(args: Namespace) -> int:
    """1 when one of them could not be told."""
    start_daemon(args.dir)

    async def send() -> int:
        async with Client(args.dir, timeout=TEST_SECONDS, retries=0) as client:
            results = await client.notify_test(args.name or "")
        for said in results:
            print(f"{said.name} ({said.kind}): {'ok' if said.ok else 'FAILED'}, {said.text}")
        return 0 if all(said.ok for said in results) else 1

    return asyncio.run(send())
