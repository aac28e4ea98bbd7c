"""Which actions a screen offers is its own to say, also while a dialog or the palette is over it.

Textual looks up an action of `screen.` in the screen on top: under a dialog, a footer and the palette would offer all
that the dialog does not refuse.
"""

from typing import ClassVar

from textual.actions import parse
from textual.app import App
from textual.command import Provider
from textual.dom import DOMNode

from wanlora_tui.actions import all_actions


def _commands() -> type[Provider]:
    from wanlora_tui.actions.palette import Commands  # once somebody opens it

    return Commands


class OwnActions(App[None]):
    """An app whose bindings of `screen.` mean the screen of the widget that binds them."""

    COMMANDS: ClassVar = {_commands}

    def refused(self, group: str) -> set[str]:
        """Ids of the actions of the screen on top, whose group that is, and of the app that would do nothing now."""
        found = set()
        for action in all_actions():
            room, name, parameters = parse(action.action)
            if action.id.partition(".")[0] in (group, "app"):
                node = self if room == "app" else self.screen
                if node.check_action(name, parameters) is not True:
                    found.add(action.id)
        return found

    def _check_action_state(self, action: str, default_namespace: DOMNode) -> bool | None:
        destination, name, parameters = parse(action)
        if destination == "screen":
            return default_namespace.screen.check_action(name, parameters)
        return super()._check_action_state(action, default_namespace)
