"""The `wanlora` command: arguments, exit codes, and where errors go.

stdout is data, stderr is talk. Exit codes: 0 done, 1 findings or failure, 2 usage, 75 saved and can be resumed
(130 when Ctrl-C ended a command that had not finished). Every handler is imported only when its command runs.
"""

import argparse
import gc
import importlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from wanlora_tui.arguments.cache import cache
from wanlora_tui.arguments.common import Commands, add_command, completion, shared
from wanlora_tui.arguments.daemon import daemon
from wanlora_tui.arguments.job_files import work_on_job_files
from wanlora_tui.arguments.jobs import act_on_jobs, arrange_the_queue, submit_and_watch
from wanlora_tui.arguments.parsing import Parser

DONE, FAILED, USAGE, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130

_EPILOG = """\
A first job, from a folder of clips to two LoRA files:
  wanlora new --kind motion --clips clips/orbit --out job.toml
  wanlora check job.toml
  wanlora submit job.toml && wanlora attach

stdout is data, stderr is talk.
Exit codes: 0 done, 1 findings or failure, 2 usage, 75 saved and can be resumed.
"""


def parser() -> argparse.ArgumentParser:
    """Every command with its options; `handler` names the function that runs it."""
    top = Parser(
        prog="wanlora",
        parents=[shared()],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Train LoRAs for Wan 2.2 I2V A14B.\nWithout a command: the terminal interface, with the wizard and all"
            " jobs."
        ),
    )
    top.add_argument("--version", action="store_true", help="print the version")
    # what a wanlora elsewhere adds to a command that it runs here
    top.add_argument("--via", default="", help=argparse.SUPPRESS)
    top.add_argument("--leash", action="store_true", help=argparse.SUPPRESS)
    top.set_defaults(handler="tui:open_tui", far="itself", needs_home=True, parser=top)
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    count, sizes = 0, []
    for heading, group in _GROUPS:
        group(commands)
        sizes.append((heading, len(commands._choices_actions) - count))
        count = len(commands._choices_actions)
    top.groups = tuple(sizes)
    return top


def _this_machine(commands: Commands) -> None:
    daemon(commands)
    add_command(
        commands, "doctor", "doctor:doctor", "check GPU, driver, memory, disk, terminal and model files", far="there"
    )
    cache(commands)
    completion(commands)


_GROUPS = (
    ("job files", work_on_job_files),
    ("submit and watch", submit_and_watch),
    ("jobs", act_on_jobs),
    ("the queue", arrange_the_queue),
    ("this machine", _this_machine),
)


def _require_utf8(args: argparse.Namespace) -> None:
    """Whatever is named on the command line can be passed on. Raises UserError."""
    from presets.errors import UserError
    from presets.file_names import escaped, is_utf8, require_utf8

    for value in vars(args).values():
        if isinstance(value, Path):
            require_utf8(value)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not is_utf8(text):
                raise UserError(f"{escaped(text)} is not UTF-8", fix="Rename what it names")


def main(argv: list[str] | None = None) -> int:
    """Run one command line and give its exit code."""
    from presets.files import share_no_writing
    from presets.text import escape_output
    from wanlora_tui.output.far_words import speaking_of

    share_no_writing()
    top = parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell's Tab: argcomplete answers it and ends the process
        import argcomplete

        argcomplete.autocomplete(top, always_complete_options=False, exclude=_internal(top))
    escape_output()
    args = top.parse_args(argv)
    # before or behind the command's name; the options themselves have no default, so neither place hides the other
    args.dir = args.dir.absolute() if "dir" in args else None
    args.host, args.remote_wanlora = vars(args).get("host", ""), vars(args).get("remote_wanlora", "")
    about, named = args.host or args.via, {}
    if args.dir is not None and not about:  # else it is where the line to that machine has its sockets
        named["--dir"] = str(args.dir)
    if "connect" in args:
        named["--connect"] = args.connect
    commands = _commands(top) if about or named else {}
    of_daemon = [name for name, parser in commands.items() if _takes(parser, "--dir")]
    with speaking_of(about, commands, is_away=bool(args.host), daemon=named, of_daemon=of_daemon):
        return _run(args)


def _commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    groups = [action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: parser for choices in groups for name, parser in choices.items()}


def _takes(parser: argparse.ArgumentParser, option: str) -> bool:
    """Whether it, or a command below it, does."""
    return option in parser._option_string_actions or any(_takes(one, option) for one in _commands(parser).values())


def _internal(top: argparse.ArgumentParser) -> list[str]:
    """The commands that programs of wanlora give each other: no help lists them."""
    groups = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    listed = {choice.dest for group in groups for choice in group._choices_actions}
    return [name for name in _commands(top) if name not in listed]


def _imported(name: str) -> ModuleType:
    """A module, with all that it imports: none of it is garbage, and looking for some takes a tenth of the time."""
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def _to_nowhere() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(args: argparse.Namespace) -> int:
    from presets.errors import UserError
    from presets.file_names import require_home
    from presets.text import OutputLost
    from wanlora_tui.output.far_words import advised

    module, _, function = args.handler.partition(":")
    try:
        if args.version:
            from presets import VERSION

            print(VERSION, flush=True)
            return DONE
        if args.needs_home:
            require_home()
        _require_utf8(args)
        if args.leash:
            from wanlora_tui.terminal.leash import put_on_leash

            put_on_leash()
        run = getattr(_imported(f"wanlora_tui.commands.{module}"), function)
        if args.host and "connect" in args:
            raise UserError("--host and --connect are two ways to one daemon", fix="Give one of them")
        if args.host and args.far != "itself":
            from wanlora_tui.commands.far.elsewhere import elsewhere

            code: int = elsewhere(args, run)
        elif "connect" in args:
            from wanlora_tui.commands.keys import connected

            code = connected(run)(args)
        else:
            code = run(args)
        sys.stdout.flush()
        return code
    except UserError as e:
        print(f"wanlora: {advised(str(e))}", file=sys.stderr)
        return FAILED
    # the reader has left (`wanlora watch | head`); the interpreter's last flush must not complain
    except BrokenPipeError:
        _to_nowhere()
        return FAILED
    except OutputLost as e:
        _to_nowhere()
        with suppress(OSError):  # it may have been this one
            print(f"wanlora: its output cannot be written: {e.strerror}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("wanlora: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
