"""A button's label that changes. Textual draws the new one in the columns of the old one: a longer one is cut off until
something else makes it lay out the screen again. A button whose styles say how wide it is stays so, and needs none."""

from textual.widgets import Button


def set_label(button: Button, label: str) -> None:
    if str(button.label) != label:
        button.label = label
        width = button.styles.width
        button.refresh(layout=width is None or width.is_auto)
