"""Which actions a screen offers is its own to say, also while a dialog or the palette is over it.

Textual looks up an action of `screen.` in the screen on top: under a dialog, a footer and the palette would offer all
that the dialog does not refuse.
"""

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from textual.actions import parse
from textual.app import App, SystemCommand
from textual.command import Provider
from textual.dom import DOMNode
from textual.screen import Screen

from wanlora_tui.actions import all_actions

# actions that mean something on the focused widget only, or as a key alone: Ctrl+C is asked for twice
OF_WIDGETS = ("list.", "table.", "text.", "form.", "picker.", "dialog.", "preview.", "app.interrupt", "app.palette")


def _commands() -> type[Provider]:
    from wanlora_tui.actions.palette import Commands  # once somebody opens it

    return Commands


class OwnActions(App[None]):
    """An app whose bindings of `screen.` mean the screen of the widget that binds them."""

    COMMANDS: ClassVar = {_commands}

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: Textual's own, and every registered action that the screen can take now. Help and leaving are
        among those. A question keeps its size."""
        offered = {binding.binding.id: binding.node for binding in screen.active_bindings.values() if binding.enabled}
        leaves = any(action.action == "app.leave" and action.id in offered for action in all_actions())
        without = {"Keys"} | ({"Quit"} if leaves else set()) | ({"Maximize"} if screen.is_modal else set())
        for command in super().get_system_commands(screen):
            if command.title not in without:
                yield command
        for action in all_actions():
            if action.id in offered and not action.id.startswith(OF_WIDGETS):
                act = partial(self.run_action, action.action, offered[action.id])
                yield SystemCommand(action.label, action.help, act)

    def action_palette(self) -> None:
        """Textual gives its own key up where another is bound to `command_palette`."""
        self.action_command_palette()

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
