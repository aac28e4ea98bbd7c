"""Calling a user who looks elsewhere: the terminal's bell, and a notification on the desktop that it is shown on.

For how a notification is asked for there are two forms, and few terminals know both: OSC 9 (iTerm2, Windows Terminal,
kitty) and OSC 777 (rxvt, foot, those made with VTE). What a terminal does not know it passes over, as ECMA-48 5.6 has
it for control strings.
"""

import os
from pathlib import Path

from daemon.settings import TerminalSettings, load_settings, settings_file
from presets.errors import UserError
from presets.text import escaped

BELL = "\x07"
LONGEST = 200  # characters of a notification
# consoles that print what they do not know, and print it again
NO_STRINGS = ("linux", "vt", "ansi", "cons", "sun", "dumb")


def wished(dir: Path | None) -> tuple[TerminalSettings, str]:
    """What the user has set, with the daemon of `dir`; and what is wrong with the settings, which are the usual ones
    then."""
    try:
        return load_settings(settings_file(dir)).terminal, ""
    except UserError as e:
        return TerminalSettings(), str(e)


def attention(title: str, text: str, wished: TerminalSettings) -> str:
    """What to write to the terminal. The text may be anybody's: only its letters are shown, in one line."""
    rings = BELL if wished.bell else ""
    if not wished.notify or os.environ.get("TERM", "dumb").startswith(NO_STRINGS):
        return rings
    line = " ".join(escaped(f"{title}: {text}").split())[:LONGEST]
    name, _, body = line.partition(": ")
    fields = ";".join(part.replace(";", ",") for part in (name, body))
    return rings + _through(f"\x1b]9;{line}{BELL}") + _through(f"\x1b]777;notify;{fields}{BELL}")


def _through(string: str) -> str:
    """A control string for the terminal outside of a multiplexer, which would keep it to itself. tmux hands it on when
    its option allow-passthrough is on, and drops it when not."""
    if "TMUX" in os.environ:
        doubled = string.replace("\x1b", "\x1b\x1b")
        return f"\x1bPtmux;{doubled}\x1b\\"
    return f"\x1bP{string}\x1b\\" if "STY" in os.environ else string
