"""Takes apart what comes from a terminal: keys go on to Textual, answers to questions do not.

Textual reads only the answers to its own questions, whole and at once; of any other it makes keys, character by
character. A slow line brings answers late and in pieces, so here a sequence is held until it is whole. Grammar: ECMA-48
5.4 (control sequences) and 5.6 (control strings); which sequences are answers:
https://invisible-island.net/xterm/ctlseqs/ctlseqs.html
"""

import re

from textual._ansi_sequences import ANSI_SEQUENCES_KEYS

ESCAPE = "\x1b"
KEY_SECONDS = 0.1  # a lone Escape is the key when nothing follows for so long; Textual's own time
# the rest of a sequence that no key begins with is waited for so long, then its beginning is dropped
ANSWER_SECONDS = 2.0
LONGEST = 4096  # characters of a control string
PASTE_BEGIN, PASTE_END = "\x1b[200~", "\x1b[201~"

# device attributes, status, modes, sizes
_ANSWER = re.compile(r"\x1b\[(?:[?>=][0-9;:]*[ -/]*[@-~]|[0-9;]+[ -/]*[cnxy]|[0-9;:]*t)")
_MODE = re.compile(r"\x1b\[\?\d+;\d\$y")  # the answer that Textual asks for and reads
_STRING = re.compile(r"\x1b(?:_G|P[0-9>!|$+]|\][0-9lL])")  # kitty graphics; device control; operating system command
_STRING_BEGIN = tuple(ESCAPE + c for c in "_P]")
# the window's size in band: rows, columns, height, width
_RESIZED = re.compile(r"\x1b\[48;(\d+)[:\d]*;(\d+)[:\d]*;(\d+)[:\d]*;(\d+)[:\d]*t")


class TerminalInput:
    """`feed` gives what is for Textual; `answers` collects the rest. Times are seconds on any one clock."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self._held = ""
        self._held_at = 0.0
        self._pasted: str | None = None  # the last characters of a paste that is not over

    @property
    def due(self) -> float | None:
        """When `expire` has something to do; None while nothing is held."""
        if not self._held:
            return None
        return self._held_at + (KEY_SECONDS if len(self._held) <= 2 else ANSWER_SECONDS)

    def feed(self, text: str, now: float) -> str:
        """Take what was read, and give the keys in it: whole sequences only, unless one has run into another."""
        out = ""
        for c in text:
            out += self._take(c)
        if self._held:
            self._held_at = now
        return out

    def expire(self, now: float) -> str:
        """Give up waiting for the rest of what is held. A key that is a sequence's beginning (Escape, Alt+[) comes
        back."""
        if self.due is None or now < self.due:
            return ""
        held, self._held = self._held, ""
        return held if len(held) <= 2 else ""

    def _take(self, c: str) -> str:
        if self._pasted is not None:
            self._pasted = (self._pasted + c)[-len(PASTE_END) :]
            if self._pasted == PASTE_END:
                self._pasted = None
            return c
        if not self._held:
            if c != ESCAPE:
                return c
            self._held = c
            return ""
        held = self._held + c
        if held.startswith("\x1b["):
            return self._control_sequence(held)
        if _STRING.match(held):
            return self._control_string(held)
        if held in _STRING_BEGIN:
            self._held = held
            return ""
        if c == ESCAPE:  # Escape twice, or a sequence after the Escape key
            self._held = c
            return held[:-1]
        self._held = ""
        return held

    def _control_sequence(self, held: str) -> str:
        self._held = held
        last = held[-1]
        if len(held) == 2:
            return ""
        # F1 of a Linux console and the old form of a mouse event: one more character, three more
        if held[2] == "[" or (held[2] == "M" and held not in ANSI_SEQUENCES_KEYS):
            if len(held) < (4 if held[2] == "[" else 6):
                return ""
        elif held not in ANSI_SEQUENCES_KEYS and " " <= last <= "?":
            return ""
        elif not " " <= last <= "~":  # broken off: what follows is something else
            self._held = ""
            return self._take(last)
        self._held = ""
        if held == PASTE_BEGIN:
            self._pasted = ""
        if size := _RESIZED.fullmatch(held):
            return _resized(*map(int, size.groups()))
        if _ANSWER.fullmatch(held) and held not in ANSI_SEQUENCES_KEYS and not _MODE.fullmatch(held):
            self.answers.append(held)
            return ""
        return held

    def _control_string(self, held: str) -> str:
        if held.endswith(("\x07", "\x1b\\")):
            self._held = ""
            self.answers.append(held)
        elif held[-2] == ESCAPE and len(held) > 3:  # broken off by another sequence
            self._held = ESCAPE
            return self._take(held[-1])
        else:
            self._held = held if len(held) <= LONGEST else ""
        return ""


def _resized(rows: int, columns: int, height: int, width: int) -> str:
    """The size for Textual, which divides by it: none where there is none, and a pixel for a cell where only that is
    unknown."""
    if not rows or not columns:
        return ""
    return f"\x1b[48;{rows};{columns};{height or rows};{width or columns}t"
