"""A button's label that changes. Textual draws the new one in the columns of the old one: a longer one is cut off until
something else makes it lay out the screen again."""

from textual.widgets import Button


def set_label(button: Button, label: str) -> None:
    if str(button.label) != label:
        button.label = label
        button.refresh(layout=True)
