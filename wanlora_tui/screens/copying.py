"""What is copied from a screen: the terminal's clipboard takes it, and the screen shows it."""

from pathlib import Path
from typing import Any

from textual.screen import Screen

from wanlora_tui.output.far_words import shown_path


def copy_path(screen: Screen[Any], path: Path, *, title: str) -> None:
    """Send a path to the terminal's clipboard, and show it for terminals that have none."""
    shown = shown_path(str(path), short=False)
    screen.app.copy_to_clipboard(shown)
    words = (
        "Sent to the terminal's clipboard (OSC 52). If your terminal or tmux does not pass it on, copy it from here."
    )
    screen.notify(f"{shown}\n{words}", title=title, timeout=10)
