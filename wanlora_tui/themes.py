"""The themes that the screens can be read in."""

from textual.theme import Theme

from wanlora_tui.terminal.drawn_text import SafelyDrawn


class ReadableThemes(SafelyDrawn):
    """An app without Textual's ansi themes.

    Their colours are those of the terminal, which nobody here knows: whatever is mixed from them (the plot, dimmed
    text, the greys of NO_COLOR) comes out as black on black.
    """

    @property
    def available_themes(self) -> dict[str, Theme]:
        return {name: theme for name, theme in super().available_themes.items() if not theme.ansi}


def readable(name: str) -> str:
    """The theme to take for a remembered one, which an older version may have offered."""
    return name.replace("ansi-", "textual-")
