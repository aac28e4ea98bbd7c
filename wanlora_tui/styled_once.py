"""New widgets have their styles looked up once.

Textual looks up the styles of a widget, and of all that is in it, whenever a class of it changes. A widget that is
made, composed and mounted gets its classes one by one, which took a third of the time of a new step or dialog. Here
what is on no screen yet waits until it comes there, and what is being mounted until that is done.
"""

import asyncio

from textual.app import App
from textual.dom import DOMNode
from textual.screen import Screen
from textual.widget import Widget


class StyledOnce(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self._coming: list[Widget] = []  # those that are being mounted and whose classes have changed

    def update_styles(self, node: DOMNode, animate: bool = True) -> None:
        if not isinstance(node, Widget) or isinstance(node, Screen) or node.is_mounted:
            super().update_styles(node, animate)
        elif node.is_attached:
            if not self._coming:  # runs before what waits for the mount goes on, and so before it is drawn
                asyncio.get_running_loop().call_soon(self._style_new)
            self._coming.append(node)

    def _style_new(self) -> None:
        coming, self._coming = self._coming, []
        nodes = {node: None for w in coming if w.is_attached for node in w.walk_children(with_self=True)}
        self.stylesheet.update_nodes(nodes)
