"""The widget that draws pictures as this terminal can, without textual-image's own questions to the terminal; and what
else a picture must know of the terminal."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.app import App
from textual.widget import Widget

from wanlora_tui.terminal.conversation import Pictures

Drawer = type[Widget] | Callable[[], type[Widget]]  # the widget that draws pictures, or what gives it once one is drawn
USUAL_CELL = (10, 20)  # pixels, where the size is unknown: only its proportion counts for half cells


class _Cell:
    """Width and height in pixels, as the terminal has said."""

    size = USUAL_CELL


def picture_class(pictures: Pictures = "half cells", cell: tuple[int, int] | None = None) -> type[Widget]:
    """The class for a way of drawing, with the size of a cell in pixels.

    When it is imported textual-image asks the terminal twice, waits 0.1 s and takes what it reads for the answer;
    whatever comes later is left to become keys. It asks nothing when its output is no terminal, which is shown to it
    here.
    """
    real = sys.__stdout__
    with Path(os.devnull).open("w") as nothing:
        sys.__stdout__ = nothing  # type: ignore[misc]
        try:
            from textual_image import _terminal, widget

            from wanlora_tui.terminal.kitty_image import KittyImage
        finally:
            sys.__stdout__ = real  # type: ignore[misc]
    _Cell.size = cell or USUAL_CELL
    # where it keeps what it has found out
    _terminal.get_cell_size._result = _terminal.CellSize(*_Cell.size)  # type: ignore[attr-defined]
    classes: dict[Pictures, type[Widget]] = {
        "Sixel": widget.SixelImage,
        "Kitty graphics": KittyImage,
        "half cells": widget.HalfcellImage,
    }
    return classes[pictures]


def drawer(of: Drawer) -> type[Widget]:
    return of if isinstance(of, type) else of()


def draws_half_cells(image: type[Widget]) -> bool:
    """Whether it is the class for terminals that have no graphics."""
    return image.__name__ == "HalfcellImage"


def pixel_aspect() -> float:
    """Of half a cell, width by height: 1 where it is square."""
    width, height = _Cell.size
    return 2 * width / height


def is_behind(app: App[Any]) -> bool:
    """Whether the terminal has not yet taken all that was drawn: a slow line, or a slow terminal."""
    return bool(getattr(app._driver, "is_behind", False))  # those of tests have no terminal
