"""What is set up once: daemon install, uninstall: who starts the daemon with the machine; completion: what the shell
completes. What systemd and cron are asked is daemon.services's."""

import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path

from daemon.errors import DaemonError
from daemon.services import crontab, systemd
from daemon.services.crontab import shell_line
from daemon.settings import settings_file
from daemon.wire.blocking import daemon_status
from daemon.wire.paths import DaemonPaths, daemon_paths, make_private
from daemon.wire.protocol import RUNNING_STATES
from daemon.wire.start import ensure_running
from daemon.wire.stop import live_trainers, stop_daemon
from presets.atomic_file import write_file
from presets.errors import UserError
from wanlora_tui.commands.common import say
from wanlora_tui.commands.daemon import end
from wanlora_tui.output.formatting import home_path


def install(args: Namespace) -> int:
    """0 when the daemon runs and comes back with the machine; 1 when only its line could be printed."""
    if args.show:
        print(systemd.unit_text(args.dir), end="")
        return 0
    if trouble := systemd.trouble():
        return _without_systemd(args.dir, trouble)
    where = daemon_paths(args.dir)
    make_private(where.state)
    path, text = systemd.unit_path(args.dir), os.fsencode(systemd.unit_text(args.dir))  # paths of any encoding in it
    changed = not path.is_file() or path.read_bytes() != text
    if changed:
        write_file(path, text)
    systemd.enable(args.dir)
    said = _hand_over(args.dir, changed=changed)
    say(f"{'Wrote' if changed else 'Unchanged:'} {home_path(str(path))}. {said}")
    say(_about_lingering())
    return 0


def _hand_over(folder: Path | None, *, changed: bool) -> str:
    """Have systemd run the daemon, in place of one that runs outside it. Raises UserError."""
    before = daemon_status(folder)
    watched = systemd.main_pid(folder)
    if before.state != "none" and before.pid == watched and not changed:
        return f"systemd runs the daemon already (pid {watched})."
    if before.state != "none" and before.pid == watched:
        systemd.restart(folder)
    elif before.state != "none":
        ended = stop_daemon(folder)
        if not ended.ended:
            raise UserError(ended.text.rstrip("."), fix="It keeps running outside systemd. End it, then install again")
    ensure_running(folder)
    after = daemon_status(folder)
    if after.problem:
        raise after.problem
    if after.pid != systemd.main_pid(folder):
        raise UserError(
            f"the daemon runs (pid {after.pid}), but outside systemd",
            fix=f"See: systemctl --user status {systemd.unit_name(folder)}; then install again",
        )
    running = sum(job.state in RUNNING_STATES for job in after.jobs.jobs) if after.jobs else 0
    trainers = f", and has taken over {running} that train" if running else ""
    return f"systemd runs the daemon (pid {after.pid}){trainers}."


def _about_lingering() -> str:
    lingers = systemd.lingers()
    if lingers:
        return "Lingering is on: it starts with the machine, and a logout ends neither it nor a trainer."
    why = "Lingering is off" if lingers is False else "Whether lingering is on could not be found out. Without it"
    return (
        f"{why}: systemd starts the daemon at your first login only, and ends it and every trainer when you have logged"
        f" out. Turn it on with: {systemd.linger_command()}   (with sudo where that is refused)"
    )


def _without_systemd(folder: Path | None, trouble: str) -> int:
    say(f"{trouble[:1].upper()}{trouble[1:]}.")
    try:
        changed = crontab.install(folder) if crontab.is_there() else None
        lacking = "There is no crontab either"
    except DaemonError as e:  # not everybody may use it
        changed, lacking = None, f"cron is not to be had either: {e.what}"
    if changed is None:
        say(
            f"{lacking}. Nothing was installed. Put this line into what starts the machine, such as the start command"
            " of the container, before the command that stays:"
        )
        print(f"{shell_line(folder)} &")
        say("Without it the daemon starts with the first command that needs it.")
        return 1
    say(
        f"{'Added' if changed else 'Unchanged:'} an @reboot line {'to' if changed else 'in'} your crontab: cron starts"
        " the daemon with the machine, if cron itself runs. Nobody starts it again when it dies; the next command that"
        " needs it does."
    )
    started = ensure_running(folder)
    say(f"The daemon runs{'' if started else ' already'} (pid {daemon_status(folder).pid}).")
    return 0


def uninstall(args: Namespace) -> int:
    """0 when nothing of it is left, 1 when cron, which may start it, could not be asked."""
    where, folder = daemon_paths(args.dir), args.dir
    if args.purge:
        _agree_to_purge(where, folder, yes=args.yes)
    path, unknown = systemd.unit_path(folder), False
    if unit := path.is_file():
        usable = not systemd.trouble()
        if usable:
            systemd.disable(folder)
        path.unlink()
        if usable:
            systemd.forget(folder)
        unasked = "" if usable else " systemd cannot be asked here, and keeps it in mind until it is started anew."
        say(f"Removed {home_path(str(path))}.{unasked}")
    else:
        say("No unit of systemd was installed.")
    try:
        if crontab.uninstall(folder):
            say("Removed the @reboot line from your crontab.")
    except DaemonError as e:  # not everybody may use it
        unknown = not unit
        say(f"Whether your crontab starts it is not known: {e.what}.")
    done = end(folder)
    if not done.ended:
        raise UserError(done.text.rstrip("."), fix="End it by hand, then uninstall again")
    if done.ran:
        say(done.text)
    if args.purge:
        for left in (where.state, where.runtime):
            shutil.rmtree(left, ignore_errors=True)
            if left.exists():
                raise UserError("could not be removed whole", where=str(left), fix="Remove what is left of it by hand")
        say(f"Removed {home_path(str(where.state))}. Run folders were not touched.")
    else:
        say(
            f"Kept: the job table and the log in {home_path(str(where.state))}, the settings"
            f" {home_path(str(settings_file(folder)))}, and all run folders. Trainers keep running; the next daemon"
            " takes them over."
        )
    return 1 if unknown else 0


def _agree_to_purge(where: DaemonPaths, folder: Path | None, *, yes: bool) -> None:
    """Raises UserError unless nothing runs and the user agrees."""
    seen = daemon_status(folder)
    if seen.state != "none" and seen.jobs is None:
        raise UserError(
            "whether something trains cannot be found out, so the job table stays",
            where=str(where.state),
            fix="Mend or end the daemon first: wanlora daemon status",
        )
    if seen.jobs and (live := [job.name for job in seen.jobs.jobs if job.state in RUNNING_STATES]):
        raise UserError(
            f"{', '.join(live)} {'is' if len(live) == 1 else 'are'} running, so the job table stays",
            where=str(where.state),
            fix="Stop what runs first: wanlora stop JOB",
        )
    if seen.state == "none" and (pids := live_trainers(folder)):
        raise UserError(
            f"a trainer is running without its daemon (pid {pids[0]}), so the job table stays",
            where=str(where.state),
            fix="Take it over with `wanlora daemon start`, then stop it with: wanlora stop JOB",
        )
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("was not removed: nobody can be asked here", where=str(where.state), fix="Say --yes too")
    say(
        f"This removes {where.state}: the job table, the copies of job files, the log, and what the interface"
        " remembers. Run folders stay."
    )
    print("Remove it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("was not removed, and nothing was uninstalled", where=str(where.state))


def completion(args: Namespace) -> int:
    """The script; on a terminal, where to put it, too."""
    from argcomplete import shellcode

    if args.shell not in args.shells:
        args.parser.error(f"there is no script for {args.shell!r}, but for {', '.join(args.shells)}")
    print(shellcode(["wanlora"], shell=args.shell))
    if sys.stdout.isatty():
        say((args.parser.epilog or "").rstrip())  # where to put it
    return 0
