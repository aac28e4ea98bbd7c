"""The commands that open the terminal interface: no command at all, and attach."""

import gc
import os
import sys
from argparse import Namespace
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import NotRunning
from daemon.wire.client import Client
from daemon.wire.paths import daemon_paths
from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from presets.text import to_type
from wanlora_tui.commands.common import ask, pick_job, say, start_daemon
from wanlora_tui.terminal.streams import has_signs, is_dumb, is_terminal

if TYPE_CHECKING:
    from wanlora_tui.remote.connection import Connection


def need_terminal(instead: str) -> None:
    """Raises UserError when the screens have no terminal to be drawn on."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise UserError("this needs a terminal", fix=f"Without one, use: {instead}")
    if is_dumb():
        raise UserError(
            f"the terminal says it can draw nothing (TERM={os.environ.get('TERM', '')!r})",
            fix=f"Set TERM, e.g. TERM=xterm-256color, or use: {instead}",
        )
    if not has_signs(sys.stdout):
        raise UserError(
            f"the screens are drawn with signs that the output's encoding ({sys.stdout.encoding}) lacks",
            fix=f"Set LANG=C.UTF-8, and no PYTHONIOENCODING, in a terminal of UTF-8; or use: {instead}",
        )


def open_tui(args: Namespace) -> int:
    """The jobs, and the wizard behind `n`."""
    need_terminal("wanlora jobs, wanlora new, wanlora watch (see wanlora --help)")
    if not args.host:
        return run_app(args.dir)
    from wanlora_tui.remote.connection import connected

    with connected(args.host, daemon_paths(args.dir).state, args.remote_wanlora) as there:
        if there.has_started:
            say(f"Started the daemon on {args.host}.")
        return run_app(there.folder, state_folder=args.dir, host=args.host, there=there)


def wizard(args: Namespace) -> int:
    """The wizard alone, as it is opened on another machine."""
    need_terminal("wanlora new")
    return run_app(args.dir, only_wizard=True)


def attach(args: Namespace) -> int:
    """The dashboard of one job; leaving it does not stop the job."""
    try:
        need_terminal(to_type("watch", args.job or ""))
    except UserError:
        _require_known(args)
        raise
    with ExitStack() as stack:
        folder: Path | None = args.dir
        there: Connection | None = None
        if args.host:
            from wanlora_tui.remote.connection import connected

            state_dir = daemon_paths(args.dir).state
            there = stack.enter_context(connected(args.host, state_dir, args.remote_wanlora))
            folder = there.folder
            if there.has_started:
                say(f"Started the daemon on {args.host}.")
        else:
            start_daemon(folder)
        record = (
            ask(folder, lambda daemon: daemon.snapshot(args.job))[0] if args.job else pick_job(ask(folder, Client.jobs))
        )
        return run_app(folder, state_folder=args.dir, job=record, host=args.host, there=there, rate=args.rate)


def _require_known(args: Namespace) -> None:
    """Raises UserError where the daemon that runs here knows no such job: who is sent to another command would be told
    so there."""
    if args.job and not args.host:
        with suppress(NotRunning):
            ask(args.dir, lambda daemon: daemon.snapshot(args.job))


def run_app(
    folder: Path | None,
    *,
    state_folder: Path | None = None,
    job: JobRecord | None = None,
    host: str = "",
    there: "Connection | None" = None,
    only_wizard: bool = False,
    close_when_done: float = 0.0,
    rate: float | None = None,
) -> int:
    """Run the app on the daemon of `folder` and say what its user should know after it closed.

    What was seen is kept with the user's own records, or with those of the daemon in `state_folder`: the folder of a
    connection is deleted afterwards. `rate`: what an hour costs, in place of what the settings say.
    """
    from wanlora_tui.terminal.conversation import Conversation

    with Conversation(sys.stdin.fileno(), sys.stdout.fileno()) as terminal:
        terminal.ask()
        gc.disable()  # until the app has started: a tenth of that time, and no garbage to speak of
        from wanlora_tui.app import WanloraApp  # takes as long as most answers
        from wanlora_tui.feeds.run_times import cost_settings
        from wanlora_tui.terminal.driver import driver_on
        from wanlora_tui.terminal.pictures import picture_class

        terminal.listen()
        cost, problem = cost_settings(state_folder if host else folder, rate)
        if problem:
            say(problem)
        app = WanloraApp(
            folder,
            daemon_paths(state_folder if host else folder).state,
            image=partial(picture_class, terminal.pictures, terminal.cell),
            job=job,
            host=host,
            there=there,
            only_wizard=only_wizard,
            close_when_done=close_when_done,
            cost=cost,
        )
        app.driver_class = driver_on(terminal)
        app.run()
    gc.enable()
    for line in app.farewell:
        say(line)
    if (app.return_code or 0) > 128:  # ended by a signal: what else the command was to do is not wanted any more
        raise SystemExit(app.return_code)
    return app.return_code or 0
