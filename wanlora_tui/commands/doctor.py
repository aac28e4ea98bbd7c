"""doctor: what this machine has and lacks for training, one line each, with the fix. The checks of the machine itself
are in commands.doctor_machine; those of the daemon and the terminal are here."""

import os
import sys
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from daemon.errors import DaemonError
from daemon.services import systemd
from daemon.settings import SECRETS_FILE, load_secrets, load_settings, settings_file
from daemon.wire.blocking import daemon_status
from daemon.wire.find import find, why_untrusted
from presets.disk import not_writable
from presets.errors import UserError
from presets.machine.machine import read_machine
from wanlora_tui.commands.doctor_machine import (
    Line,
    attention,
    codecs,
    disk,
    gpus,
    link,
    many_gpus,
    model,
    python,
    ram,
    torch,
    wsl,
)
from wanlora_tui.output.far_words import advised
from wanlora_tui.terminal.streams import can_draw, has_all_colours, is_colourless, is_dumb, terminal_width

LEAST_COLUMNS, LEAST_ROWS = 80, 24


def broken(line: Line, width: int) -> str:
    """The text and its fix in a column of their own, broken at words where they are wider than a terminal of
    `width`; 0 breaks nothing."""
    head = f"{line.level:<4}  {line.subject:<12} "
    parts = [
        (head, " " * len(head), line.text),
        *([(" " * len(head) + "-> ", " " * (len(head) + 3), line.fix)] if line.fix else []),
    ]
    if not width:
        return "\n".join(first + text for first, _, text in parts)
    return "\n".join(
        textwrap.fill(
            text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
        )
        for first, rest, text in parts
    )


def doctor(args: Namespace) -> int:
    """Print every line; 1 when something fails, 0 with warnings."""
    failed, width = False, terminal_width(sys.stdout)
    for line in diagnose(args.dir):
        print(advised(broken(line, width)), flush=True)
        failed |= line.level == "fail"
    return 1 if failed else 0


def diagnose(folder: Path | None) -> Iterator[Line]:
    """Every check, cheapest first; each is given as soon as it is known."""
    yield python()
    machine = read_machine(Path.cwd())
    yield from gpus(machine)
    yield from attention(machine)
    yield ram(machine)
    yield from wsl(machine)
    yield disk(machine)
    yield from _settings(folder)
    try:
        yield _runtime(folder)
        yield _daemon(folder)
    except DaemonError as e:  # the state folder is another user's
        yield Line("fail", "Daemon", f"{e.where}: {e.what}" if e.where else e.what, e.fix)
    yield _terminal()
    yield _colour()
    yield _pictures()
    yield codecs()
    yield model()
    yield torch(machine)
    yield from many_gpus(machine)
    yield from link(machine)


def _settings(folder: Path | None) -> Iterator[Line]:
    """Of settings.toml and secrets.toml, what is wrong; nothing of files that are not there."""
    file = settings_file(folder)
    for path, read in ((file, load_settings), (file.with_name(SECRETS_FILE), load_secrets)):
        if not os.path.lexists(path):
            continue
        try:
            read(path)
            yield Line("ok", "Settings", str(path))
        except UserError as e:
            yield Line("fail", "Settings", f"{e.where}: {e.what}", e.fix)


def _runtime(folder: Path | None) -> Line:
    where = find(folder).where
    if reason := why_untrusted(where.runtime):
        return Line(
            "warn",
            "Runtime dir",
            f"{reason}; the daemon keeps its sockets elsewhere",
            f"Have {where.runtime} removed, or correct its owner and permissions",
        )
    if not_writable(where.runtime):
        return Line(
            "warn",
            "Runtime dir",
            f"{where.runtime} cannot be written; the daemon keeps its sockets elsewhere",
            "Correct the permissions of that folder, or name another with --dir",
        )
    if where.runtime.exists() and where.runtime.stat().st_mode & 0o077:
        return Line("warn", "Runtime dir", f"{where.runtime} is open to other users", f"chmod 700 {where.runtime}")
    return Line("ok", "Runtime dir", str(where.runtime))


def _daemon(folder: Path | None) -> Line:
    status = daemon_status(folder)
    if status.problem is None and status.jobs and (troubles := status.jobs.troubles):
        more = f" (and {len(troubles) - 1} more: wanlora daemon status)" if len(troubles) > 1 else ""
        return Line("warn", "Daemon", f"answers (pid {status.pid}), but {troubles[0]}{more}")
    if status.problem is None:
        if systemd.main_pid(folder) == status.pid and systemd.lingers() is False:
            return Line(
                "warn",
                "Daemon",
                f"answers (pid {status.pid}); systemd ends it and every trainer when you have logged out",
                systemd.linger_command(),
            )
        return Line("ok", "Daemon", f"answers (pid {status.pid})")
    if status.state == "none":
        return Line("ok", "Daemon", "none runs; it starts by itself with the first job")
    return Line(
        "warn" if status.state == "starting" else "fail",
        "Daemon",
        status.problem.what,
        status.problem.fix or "wanlora daemon stop, then start it again",
    )


def _terminal() -> Line:
    if not sys.stdout.isatty():
        return Line(
            "warn",
            "Terminal",
            "the output is no terminal, so its size and colours are unknown",
            "Run doctor on the terminal that will show the dashboard",
        )
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    text = f"{columns}x{rows}, TERM={os.environ.get('TERM', '')}" + (", in tmux" if "TMUX" in os.environ else "")
    if is_dumb():
        return Line("fail", "Terminal", text, "Set TERM, e.g. TERM=xterm-256color; or use wanlora watch --plain")
    if not columns or not rows:
        return Line(
            "warn",
            "Terminal",
            f"{text}: it reports no size, so 80x24 is drawn",
            "Tell it, e.g.: stty columns 120 rows 40",
        )
    return (
        Line("ok", "Terminal", text)
        if columns >= LEAST_COLUMNS and rows >= LEAST_ROWS
        else Line("warn", "Terminal", text, f"Make it {LEAST_COLUMNS}x{LEAST_ROWS} or larger")
    )


def _colour() -> Line:
    if is_colourless():
        return Line("ok", "Colour", "off (NO_COLOR); every state also has a word")
    if has_all_colours():
        return Line("ok", "Colour", "16 million colours")
    return Line(
        "ok",
        "Colour",
        "the terminal names no 24-bit colour; previews are drawn in fewer colours (COLORTERM=truecolor if yours can"
        " do it)",
    )


def _pictures() -> Line:
    if not can_draw():
        return Line("ok", "Pictures", "drawn on terminals only; what this one can do is asked there")
    from wanlora_tui.terminal.conversation import Conversation

    with Conversation(sys.stdin.fileno(), sys.stdout.fileno()) as terminal:
        terminal.ask()
        terminal.listen()
        drawn = f"with {terminal.pictures}"
        if terminal.pictures == "half cells" and is_colourless():
            drawn = "in letters, from dark to bright: colour is off (NO_COLOR)"
        elif terminal.pictures == "half cells" and terminal.has_kitty:
            drawn += ": Kitty graphics need 24-bit colour, which the terminal does not name"
        return Line("ok", "Pictures", f"previews are drawn {drawn}")
