"""HTML from parts: elements whose texts and values are escaped, whoever wrote them."""

from html import escape
from urllib.parse import quote

from presets.text import escaped


class Markup(str):
    """Finished HTML. Any other string is text."""

    __slots__ = ()


_EMPTY = frozenset({"meta", "img", "br", "path", "line", "rect"})


def text_of(part: str) -> Markup:
    """As HTML: what is Markup stays, text is escaped, and what would act on a reader is written out."""
    return part if isinstance(part, Markup) else Markup(escape(escaped(part)))


def joined(*parts: str, by: str = "\n") -> Markup:
    return Markup(by.join(text_of(part) for part in parts if part))


def element(name: str, /, *parts: str, **values: str | float | bool) -> Markup:
    """`element("a", "text", href="...")`. A value's name loses a trailing underscore and has dashes for the others;
    True is a value that is just there, False one that is not."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text_of(str(value))}"')
        for key, value in values.items()
        if value is not False
    )
    if name in _EMPTY:
        assert not parts
        return Markup(f"<{name}{written}>" if name in ("meta", "img", "br") else f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{joined(*parts, by='')}</{name}>")


def table(rows: list[tuple[str, ...]], *, wide: bool = False, kind: str = "") -> Markup:
    """The first row is the heading. One that is `wide` scrolls for itself; `kind`: its class."""
    head, *rest = rows
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rest]
    made = element(
        "table",
        element("thead", element("tr", *(element("th", cell) for cell in head))),
        element("tbody", *body),
        class_=kind or False,
    )
    return element("div", made, class_="wide") if wide else made


def link(path: str) -> str:
    """A file of the run folder, relative to the page, and never anything else that an address can be."""
    return f"./{quote(path)}"
