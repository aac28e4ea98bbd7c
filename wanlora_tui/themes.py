"""The themes that the screens can be read in."""

from wanlora_tui.terminal.drawn_text import SafelyDrawn


class ReadableThemes(SafelyDrawn):
    """An app without Textual's ansi themes.

    Their colours are those of the terminal, which nobody here knows: whatever is mixed from them (the plot, dimmed
    text, the greys of NO_COLOR) comes out as black on black.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, theme in self.available_themes.items():
            if theme.ansi:
                self.unregister_theme(name)


def readable(name: str) -> str:
    """The theme to take for a remembered one, which an older version may have offered."""
    return name.replace("ansi-", "textual-")
