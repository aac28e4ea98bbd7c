"""Texts that are put together from parts; what of a text a terminal may get; and output streams that can take any.

What is printed passes the gate of `escape_output`, what is drawn that of wanlora_tui.terminal.drawn_text: both ask
`escaped`.
"""

import codecs
import math
import os
import re
import shlex
import sys
import unicodedata
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

_ENDED = re.compile(r"[.!?:…][\"')\]]*$")
UNWRITABLE = "wanlora.unwritable"
# What stands for a sign of ours in an output that lacks it: one column each, or tables would shift.
_PLAIN = str.maketrans(
    "…·→←✓✗●○◐◌■►▶▸◀▾▲◆▣⊘│‖─┴×≈–—‘’“”█▇▆▅▄▃▂▁░",
    ".-><+x*ooo#>>><v^*#/||-+x~--''\"\"####==__.",
)
_COMMAND = re.compile(r": (?:wanlora|ssh)\b.*$")  # a full stop behind it would be copied along
# What a terminal acts on instead of showing it: C0 but for tab and newline, delete, C1, separators of lines, what turns
# the direction of writing; and halves of characters, which no encoding has.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udc9f"
_ACTED_ON = re.compile(f"[{_CONTROLS}]")
# bytes of a name that is not UTF-8 as well (PEP 383), which make_writable hands on to who reads the output
_UNSHOWN = re.compile(f"[{_CONTROLS}\udca0-\udfff]")


def sentences(*parts: str) -> str:
    """The parts as one text, each ended with a full stop unless it has an end mark; empty parts are left out.

    A command to type at the very end (`Start it with: wanlora daemon start`) stays as it is.
    """
    texts = [text for part in parts if (text := part.strip())]
    open_end = bool(texts and _COMMAND.search(texts[-1]))
    return " ".join(
        t if _ENDED.search(t) or (open_end and i == len(texts)) else f"{t}." for i, t in enumerate(texts, 1)
    )


def to_type(does: str, operand: str | Path, options: str = "") -> str:
    """`wanlora resume orbit`, as a shell and wanlora take it whatever the operand is: quoted, and behind `--` when it
    begins with a dash; "" leaves it out. For every hint that names a job or a file. `options` are written as they
    are."""
    quoted = shlex.quote(escaped(str(operand))) if operand else ""
    words = [does, options, "--", quoted] if quoted.startswith("-") else [does, quoted, options]
    return " ".join(["wanlora", *filter(None, words)])


def rate_text(value: float, digits: int = 3) -> str:
    """A learning rate as users write it, to so many digits: `1e-4`, `5e-5`, `1.25e-4`."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return "0" if value == 0 else f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def loss_text(value: float) -> str:
    """A loss, the same wherever it is shown: `0.1234`, and `5.3e-4` or `1.2e30` where those digits say little."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else rate_text(value)


def setting_text(field: str, value: object) -> str:
    """A value that may change while a job trains, whole, and the same wherever it is shown: `9e-4`, `250`,
    `left out`."""
    if value is None:
        return "left out"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return rate_text(value, 12) if field.endswith(".lr") else f"{value:.12g}"


def human(size: float) -> str:
    """Bytes for a person, in three digits or so: `512 B`, `12 KiB`, `1.8 GiB`, `140 GiB`."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.{int(size < 100 and unit[0] in 'MGT')}f} {unit}"


def escaped(text: str) -> str:
    r"""The text with everything written out that a terminal would act on, or that cannot be encoded: `\x1b`, `\u202e`;
    of a file's name that is not UTF-8 the bytes: `caf\xe9.mp4`. Tabs and newlines stay, as does any other text."""
    return _UNSHOWN.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def escaped_json(data: bytes) -> bytes:
    """The same for JSON, in its own way: encoders leave delete, C1 and what turns the direction as they are."""
    return _ACTED_ON.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode()).encode()


class OutputLost(OSError):
    """What was printed has reached nobody, as on a full disk. A reader who has left is a BrokenPipeError."""


def _lost(error: OSError) -> OSError:
    return error if isinstance(error, BrokenPipeError) else OutputLost(error.errno, error.strerror)


class EscapedStream:
    """A stream of text on which nothing that is written acts on a terminal. All else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(_ACTED_ON.sub(_written_out, text))
        except OSError as e:
            raise _lost(e) from None

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as e:
            raise _lost(e) from None

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def escape_output() -> None:
    """Have both output streams take any text, and hand on nothing of it that a terminal would act on. A standard stream
    with which the program was not started leads nowhere: what it opens must not be taken for one.

    Python's own colours (of tracebacks and usage) pass through them like any other text, so they are turned off.
    """
    os.environ["PYTHON_COLORS"] = "0"
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  (as long as the program)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, EscapedStream):
            make_writable(stream)
            setattr(sys, name, EscapedStream(stream))


def unescaped(stream: TextIO) -> TextIO:
    """The stream behind the gate, for what we have a terminal do. Texts of others must be `escaped` for it."""
    return stream.stream if isinstance(stream, EscapedStream) else stream


def write_over(text: str, stream: TextIO) -> None:
    """Write over the terminal's present line."""
    terminal = unescaped(stream)
    terminal.write(f"\r\x1b[2K{escaped(text)}")
    terminal.flush()


def make_writable(stream: object) -> None:
    """Have a stream of text take whatever is printed: what its encoding lacks becomes a sign that it has."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors=UNWRITABLE)


def _unwritable(error: UnicodeError) -> tuple[bytes, int]:
    """The bytes of a file's name that is not in the encoding go out as they came in. Of other signs, ours have a plain
    one that stands for them, letters lose their accents, and the rest becomes "?"."""
    assert isinstance(error, UnicodeEncodeError)
    return b"".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(sign: str) -> bytes:
    if "\udc80" <= sign <= "\udcff":
        return bytes([ord(sign) - 0xDC00])
    plain = unicodedata.normalize("NFKD", sign.translate(_PLAIN)).encode("ascii", "ignore")
    return plain if len(plain) == 1 else b"?"


codecs.register_error(UNWRITABLE, _unwritable)
