"""Pictures by kitty's graphics protocol that the terminal forgets when nobody sees them any more.

textual-image's own asks it to delete what is placed on the screen: pictures in place of text are not, so all would stay
in the terminal's memory, also after the program has ended. Importing this asks the terminal, unless
wanlora_tui.terminal.pictures does it.
"""

import sys
from contextlib import suppress

from textual_image.renderable.tgp import Image as Renderable
from textual_image.widget import BaseImage


class _Forgotten(Renderable):
    def cleanup(self) -> None:
        """Free the picture with its data; https://sw.kovidgoyal.net/kitty/graphics-protocol/#deleting-images"""
        if self.terminal_image_id and sys.__stdout__ is not None:
            with suppress(OSError, ValueError):  # the terminal has been closed
                sys.__stdout__.write(f"\x1b_Ga=d,d=I,i={self.terminal_image_id},q=2\x1b\\")
                sys.__stdout__.flush()
            self.terminal_image_id = None


class KittyImage(BaseImage, Renderable=_Forgotten):
    """As textual-image's TGPImage."""

    def on_unmount(self) -> None:
        self.image = None
