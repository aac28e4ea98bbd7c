"""The one registry of actions: every key binding, the footer, the help screen and the command palette read it.

A screen binds what it offers with `bindings("jobs.open", ...)`; an action that is not registered cannot be bound.
"""

from dataclasses import dataclass

from textual.actions import parse
from textual.binding import Binding
from textual.markup import escape


@dataclass(frozen=True, kw_only=True)
class Action:
    id: str  # "jobs.open": remappable, stable
    keys: str  # comma-separated; the first is shown. Keys that survive tmux and SSH only
    action: str  # Textual action, e.g. "open_job"
    label: str  # one or two words, for the footer
    help: str  # one sentence, for the help screen and the palette
    show: bool = True  # in the footer
    priority: bool = False  # before the focused widget sees the key, and over dialogs
    costs: bool = False  # it acts on jobs, runs or files: its key means nothing else on any screen
    needs_daemon: bool = False  # without a daemon that answers it can do nothing, and is not offered


_registry: dict[str, Action] = {}
_of_the_daemon: set[str] = set()


def register(*actions: Action) -> None:
    for action in actions:
        assert action.id not in _registry, action.id
        _registry[action.id] = action
        if action.needs_daemon:
            _of_the_daemon.add(parse(action.action)[1])


def bindings(*ids: str) -> list[Binding | tuple[str, str] | tuple[str, str, str]]:
    """Textual bindings of the named actions, for a `BINDINGS` class variable."""
    return [
        Binding(a.keys, a.action, a.label, show=a.show, tooltip=escape(a.help), id=a.id, priority=a.priority)
        for a in (_registry[i] for i in ids)
    ]


def needs_daemon(action: str) -> bool:
    """`action`: its Textual action's name, without its screen and parameters."""
    return action in _of_the_daemon


def all_actions() -> list[Action]:
    return list(_registry.values())


# each registers its actions on import
from wanlora_tui.actions import general, jobs, live, log, pictures, plot, wizard  # noqa: E402, F401
