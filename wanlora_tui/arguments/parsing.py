"""The parser of every command line: it names what was probably meant, and shows its commands in groups. Which commands
there are is in the neighbouring modules; what a shell completes is in completing."""

import argparse
from collections.abc import Iterable
from typing import Any

MOST_SHOWN = 12  # commands in an error
ENOUGH_ALIKE = 0.6  # of difflib's ratio: `sumbit` is submit, `sub` is nothing in particular


class Parser(argparse.ArgumentParser):
    """Its subcommands' parsers are of the same kind."""

    groups: tuple[tuple[str, int], ...] = ()  # (heading, how many of the commands, in their order)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, left = self.parse_known_args(args, namespace)
        if left:
            of: argparse.ArgumentParser = found.parser if "parser" in found else self
            options = [option for action in of._actions for option in action.option_strings]
            hints = [hint for word in left if (hint := did_you_mean(word.partition("=")[0], options))]
            of.error(f"unrecognized arguments: {' '.join(left)}{hints[0] if hints else ''}")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            shown = [choice.dest for choice in action._choices_actions]
            few = f". There are: {', '.join(shown)}" if len(shown) <= MOST_SHOWN else ""
            whole = next((f"{name} {value}" for name, p in action.choices.items() if value in _commands_of(p)), "")
            hint = f". Did you mean {whole}?" if whole else did_you_mean(value, shown) or few
            raise argparse.ArgumentError(None, f"there is no command {value!r}{hint}")
        super()._check_value(action, value)

    def format_help(self) -> str:
        if not self.groups:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group in self._action_groups:
            parts = [action for action in group._group_actions if isinstance(action, argparse._SubParsersAction)]
            if not parts:
                formatter.start_section(group.title)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
                continue
            commands = iter(parts[0]._choices_actions)
            for heading, number in self.groups:
                formatter.start_section(heading)
                formatter.add_arguments([command for _, command in zip(range(number), commands, strict=False)])
                formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def _commands_of(parser: argparse.ArgumentParser) -> list[str]:
    return [name for a in parser._actions if isinstance(a, argparse._SubParsersAction) for name in a.choices]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`. Did you mean submit?`, or nothing."""
    from difflib import get_close_matches  # only where something is wrong

    found = get_close_matches(word, list(known), 1, ENOUGH_ALIKE)
    return f". Did you mean {found[0]}?" if found else ""
