"""The widget that draws pictures as this terminal can, without textual-image's own questions to the terminal."""

import os
import sys
from pathlib import Path

from textual.widget import Widget

from wanlora_tui.terminal.conversation import Pictures

USUAL_CELL = (10, 20)  # pixels, where the size is unknown: only its proportion counts for half cells


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
        finally:
            sys.__stdout__ = real  # type: ignore[misc]
    # where it keeps what it has found out
    _terminal.get_cell_size._result = _terminal.CellSize(*(cell or USUAL_CELL))  # type: ignore[attr-defined]
    classes: dict[Pictures, type[Widget]] = {
        "Sixel": widget.SixelImage,
        "Kitty graphics": widget.TGPImage,
        "half cells": widget.HalfcellImage,
    }
    return classes[pictures]
