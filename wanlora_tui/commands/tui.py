"""The commands that open the terminal interface: no command at all, and attach."""

import os
import sys
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from daemon.wire.client import Client
from daemon.wire.paths import daemon_paths
from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from wanlora_tui.commands.common import ask, pick_job, say, start_daemon
from wanlora_tui.terminal.streams import is_dumb, is_terminal


def need_terminal(instead: str) -> None:
    """Raises UserError when the screens have no terminal to be drawn on."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise UserError("this needs a terminal", fix=f"Without one, use: {instead}")
    if is_dumb():
        raise UserError(
            f"the terminal says it can draw nothing (TERM={os.environ.get('TERM', '')!r})",
            fix=f"Set TERM, e.g. TERM=xterm-256color, or use: {instead}",
        )


def open_tui(args: Namespace) -> int:
    """The jobs, and the wizard behind `n`."""
    need_terminal("wanlora jobs, wanlora new, wanlora watch (see wanlora --help)")
    return run_app(args.dir)


def attach(args: Namespace) -> int:
    """The dashboard of one job; leaving it does not stop the job."""
    need_terminal("wanlora watch" + (f" {args.job}" if args.job else ""))
    with ExitStack() as stack:
        if args.host:
            from wanlora_tui.ssh_tunnel import tunnel

            folder: Path | None = stack.enter_context(tunnel(args.host))
        else:
            folder = args.dir
            start_daemon(folder)
        record = (
            ask(folder, lambda daemon: daemon.snapshot(args.job))[0] if args.job else pick_job(ask(folder, Client.jobs))
        )
        return run_app(folder, state_folder=args.dir, job=record, host=args.host or "")


def run_app(
    folder: Path | None,
    *,
    state_folder: Path | None = None,
    job: JobRecord | None = None,
    host: str = "",
    close_when_done: float = 0.0,
) -> int:
    """Run the app on the daemon of `folder` and say what its user should know after it closed.

    What was seen is kept with the user's own records, or with those of the daemon in `state_folder`: the folder of a
    tunnel is deleted afterwards.
    """
    from wanlora_tui.terminal.conversation import Conversation

    with Conversation(sys.stdin.fileno(), sys.stdout.fileno()) as terminal:
        terminal.ask()
        from wanlora_tui.app import WanloraApp  # takes as long as most answers
        from wanlora_tui.terminal.driver import driver_on
        from wanlora_tui.terminal.pictures import picture_class

        terminal.listen()
        image = picture_class(terminal.pictures, terminal.cell)
        app = WanloraApp(
            folder,
            daemon_paths(state_folder if host else folder).state,
            image=image,
            job=job,
            host=host,
            close_when_done=close_when_done,
        )
        app.driver_class = driver_on(terminal)
        app.run()
    for line in app.farewell:
        say(line)
    if (app.return_code or 0) > 128:  # ended by a signal: what else the command was to do is not wanted any more
        raise SystemExit(app.return_code)
    return app.return_code or 0
