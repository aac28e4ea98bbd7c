"""Words about another machine or daemon: a command that is advised gets its --host, --dir and --connect, a path its
machine's name. Which these are, the command line says once; without any, words stay as they are.

How a path of this machine reads is wanlora_tui.output.formatting's.
"""

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from wanlora_tui.output.formatting import home_path

_NAMED_ALREADY = re.compile(r"\bssh (-\w+ )*\S+ $")  # before `wanlora` in `ssh box wanlora ...`


class _About:
    """What all is about."""

    host, is_away = "", False
    options: Mapping[str, str] = {}
    of_daemon: Collection[str] = ()
    command = re.compile(r"(?!)")


@contextmanager
def speaking_of(
    host: str,
    commands: Collection[str] = (),
    *,
    is_away: bool = True,
    daemon: Mapping[str, str] | None = None,
    of_daemon: Collection[str] = (),
) -> Iterator[None]:
    """Within, all is about `host` ("": this machine) and the daemon that these options name (`--dir`: its folder).
    `commands`: the names of wanlora's, of which those `of_daemon` take these options. `is_away`: it is another machine
    than this one, which a user may also reach from elsewhere by that name."""
    about = ("host", "is_away", "options", "of_daemon", "command")
    before = {name: getattr(_About, name) for name in about}
    _About.host, _About.is_away = host, bool(host) and is_away
    _About.options, _About.of_daemon = daemon or {}, of_daemon
    names = "|".join(map(re.escape, commands))
    # `wanlora` without a command's name is a command only at the end of a text: elsewhere it is the program's name
    _About.command = re.compile(rf"\bwanlora(?=\s+({names})\b([^`\n;&,]*))|(?<=: )wanlora(?=\.?$)")
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(_About, name, value)


def is_away() -> bool:
    """Whether all is about another machine than this one."""
    return _About.is_away


def advised(text: str) -> str:
    """A text with `--host` and the daemon's options in each command of wanlora that it names, where they belong."""
    if not (_About.host or _About.options) or "wanlora" not in text:
        return text

    def complete(found: re.Match[str]) -> str:
        if _NAMED_ALREADY.search(found.string, 0, found.start()):
            return found[0]
        command, given = found[1], (found[2] or "").split()
        options = {"--host": _About.host} if _About.host else {}
        if command is None or command in _About.of_daemon:
            options |= _About.options
        words = [shlex.join([option, value]) for option, value in options.items() if option not in given]
        return " ".join([found[0], *words])

    return _About.command.sub(complete, text)


def shown_path(path: str, *, short: bool = True) -> str:
    """A path on the machine that all is about: `box:/runs/orbit`; of this one, `short` with `~` for the home folder."""
    return f"{_About.host}:{path}" if _About.host else home_path(path) if short else path
