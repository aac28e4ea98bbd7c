"""What the palette finds: by the words of a label or of its help, whatever brackets stand in them."""

from collections.abc import Iterator

from textual.command import DiscoveryHit, Hit, Hits
from textual.content import Content
from textual.fuzzy import Matcher
from textual.markup import escape
from textual.system_commands import SystemCommandsProvider
from textual.types import IgnoreReturnCallbackType

EXACT, WHOLE, WORDS, HELP = 200.0, 100.0, 50.0, 25.0  # what a find is worth; one of scattered letters: below `HELP`


def found(matcher: Matcher, text: str, help: str) -> float:
    """How well a text fits what was typed; 0: not at all."""
    typed, low = " ".join(matcher.query.lower().split()), text.lower()
    score = matcher.match(text)
    if typed == low:
        return EXACT + score
    if typed in low:
        return WHOLE + score
    if all(word in low for word in typed.split()):  # in any order, with anything in between
        return WORDS + score
    if all(word in f"{low} {help.lower()}" for word in typed.split()):
        return HELP
    return min(score, HELP / 2)


def hits(matcher: Matcher, score: float, text: str, help: str, act: IgnoreReturnCallbackType) -> Iterator[Hit]:
    """None for a score of 0."""
    if score > 0:
        shown = Content(text)
        for at in matcher.fuzzy_search.match(matcher.query, text)[1]:
            if not text[at].isspace():
                shown = shown.stylize(matcher.match_style, at, at + 1)
        yield Hit(score, shown, act, text=text, help=escape(help))


def discovered(text: str, help: str, act: IgnoreReturnCallbackType) -> DiscoveryHit:
    return DiscoveryHit(Content(text), act, text=text, help=escape(help))


class Commands(SystemCommandsProvider):
    """The app's."""

    async def discover(self) -> Hits:
        for each in sorted(self.app.get_system_commands(self.screen), key=lambda each: each.title):
            if each.discover:
                yield discovered(each.title, each.help, each.callback)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for each in self.app.get_system_commands(self.screen):
            for hit in hits(matcher, found(matcher, each.title, each.help), each.title, each.help, each.callback):
                yield hit
