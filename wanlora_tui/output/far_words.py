"""Words about another machine: a command that is advised gets its --host, a path its name. Which machine that is, the
command line says once; without one, words stay as they are.

How a path of this machine reads is wanlora_tui.output.formatting's.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from wanlora_tui.output.formatting import home_path

_NAMED_ALREADY = re.compile(r"\bssh (-\w+ )*\S+ $")  # before `wanlora` in `ssh box wanlora ...`


class _About:
    """The machine that all is about."""

    host, is_away = "", False
    command = re.compile(r"(?!)")


@contextmanager
def speaking_of(host: str, commands: Iterable[str] = (), *, is_away: bool = True) -> Iterator[None]:
    """Within, all is about `host` ("": this machine). `commands`: the names of wanlora's. `is_away`: it is another
    machine than this one, which a user may also reach from elsewhere by that name."""
    before = _About.host, _About.is_away, _About.command
    _About.host, _About.is_away = host, bool(host) and is_away
    names = "|".join(map(re.escape, commands))
    # `wanlora` without a command's name is a command only at the end of a text: elsewhere it is the program's name
    _About.command = re.compile(rf"\bwanlora(?=\s+(?:{names})\b(?![^`\n;&,]*--host))|(?<=: )wanlora(?=\.?$)")
    try:
        yield
    finally:
        _About.host, _About.is_away, _About.command = before


def is_away() -> bool:
    """Whether all is about another machine than this one."""
    return _About.is_away


def advised(text: str) -> str:
    """A text with `--host` in each command of wanlora that it names."""
    if not _About.host or "wanlora" not in text:
        return text

    def with_host(found: re.Match[str]) -> str:
        named = _NAMED_ALREADY.search(found.string, 0, found.start())
        return found[0] if named else f"{found[0]} --host {_About.host}"

    return _About.command.sub(with_host, text)


def shown_path(path: str, *, short: bool = True) -> str:
    """A path on the machine that all is about: `box:/runs/orbit`; of this one, `short` with `~` for the home folder."""
    return f"{_About.host}:{path}" if _About.host else home_path(path) if short else path
