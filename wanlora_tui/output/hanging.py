"""Words behind a label or a name, in the room that there is: broken within a column of their own, so that what follows
a line's end stands under its first word, or a name that is shortened for what stands behind it."""

from collections.abc import Iterator

from rich.cells import cell_len, get_character_cell_size
from rich.text import Text

from presets.text import escaped
from wanlora_tui.output.formatting import shorten

LEAST = 12  # columns of words; with less, what follows begins near the left edge
INDENT = 2  # then


def hanging(label: Text, words: Text, width: int, indent: int | None = None) -> Text:
    """`label` and `words` in lines of `width` columns, all but the first with `indent` blanks: as wide as the label
    when left out, where there is room."""
    own = label.cell_len
    if indent is None and indent_for(own, width) == own:
        return label + Text("\n" + " " * own).join(folded(words, width - own))
    indent = min(INDENT if indent is None else indent, width // 4)
    return Text("\n" + " " * indent).join(folded(label + words, width, indent))


def indent_for(label: int, width: int) -> int:
    """Blanks before all lines but the first, below a label of so many columns."""
    return label if width - label >= LEAST else min(INDENT, width // 4)


def titled(name: str, rest: str | Text, width: int) -> Text:
    """A title of one line: the name bold, cut in the middle where `rest` would have no room, as far as it remains a
    name."""
    room = max(LEAST, width - cell_len(str(rest)))
    return Text.assemble((shorten(escaped(name), room), "bold"), rest, no_wrap=True, overflow="ellipsis")


def folded(text: Text, width: int, indent: int = 0) -> list[Text]:
    """Lines of at most `width` columns, all but the first with room for `indent` blanks before them."""
    lines = list(text.divide(breaks(text.plain, width, indent)))
    for line in lines:
        line.rstrip()
    return lines


def breaks(plain: str, width: int, indent: int = 0) -> list[int]:
    """Where each line but the first begins. Broken at blanks; a word that is longer than a line at the last slash, so
    that a file's name stays whole, else at the last of `_-.` that fits, and only else where the line ends."""
    room, cuts = width, []
    for begin, end in _paragraphs(plain):
        if begin:
            cuts.append(begin)
            room = width - indent
        at = begin
        while (fits := _fitting(plain, at, end, max(2, room))) < end:
            at = _break(plain, at, fits, width - indent)
            cuts.append(at)
            room = width - indent
    return cuts


def _paragraphs(plain: str) -> Iterator[tuple[int, int]]:
    begin = 0
    for part in plain.splitlines(keepends=True) or [""]:
        yield begin, begin + len(part.rstrip("\r\n"))
        begin += len(part)


def _fitting(plain: str, begin: int, end: int, room: int) -> int:
    """How far from `begin` on it goes into so many columns; blanks at a line's end take none."""
    columns, at = 0, begin
    while at < end:
        columns += get_character_cell_size(plain[at])
        if columns > room and plain[at] != " ":
            return at
        at += 1
    return end


def _break(plain: str, begin: int, fits: int, line: int) -> int:
    """Where the next line begins. `line`: its columns."""
    head = plain[begin:fits]
    start = len(head) - len(head.lstrip())  # blanks that a paragraph begins with are no place to break it
    blank = head.rfind(" ", start) + 1
    if blank and cell_len(plain[begin + blank :].split(maxsplit=1)[0]) <= line:
        return begin + blank  # the word fits there
    for signs in ("/", "_-."):
        at = max(head.rfind(sign, max(start, blank) + 1) for sign in signs)
        if at >= 0:
            return begin + at + 1
    return begin + blank if blank else fits
