"""What the commands' options share."""

import argparse
from functools import cache
from pathlib import Path
from typing import Literal

from wanlora_tui.arguments import completing
from wanlora_tui.arguments.completing import completed_by

Commands = argparse._SubParsersAction

# What --host makes of a command: `daemon` it runs here and talks to the daemon there; `there` it runs there, and paths
# are paths there; `job` the same, but a job file that lies here is sent along; `either` as `daemon` for a job by name,
# as `there` for one by file; `itself` it sees to that itself; `no` it makes no sense. wanlora_tui.commands.far does it.
Far = Literal["daemon", "there", "job", "either", "itself", "no"]


@cache  # a parent only lends its options: making them for each command took half of the time of all parsers
def shared() -> argparse.ArgumentParser:
    """The options of every command that talks to the daemon."""
    shared = argparse.ArgumentParser(add_help=False, parents=[host()])
    shared.add_argument(
        "--dir",
        type=_folder,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="directory of the daemon's sockets and job table (default: your runtime directory)",
    )
    shared.add_argument(
        "--connect",
        type=_named,
        metavar="ADDRESS",
        default=argparse.SUPPRESS,
        help="a daemon that listens to the network, as tcp://host:port (see: wanlora daemon keys --help)",
    )
    return shared


@cache
def host() -> argparse.ArgumentParser:
    """The options of every command, before its name or behind it: of which machine it is."""
    host = argparse.ArgumentParser(add_help=False)
    host.add_argument(
        "--host",
        type=_named,
        metavar="HOST",
        default=argparse.SUPPRESS,
        help="do it on another machine: user@box, or any name of your ssh configuration; paths are paths there",
    )
    host.add_argument(
        "--remote-wanlora",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="where wanlora is installed there, if it is not found by itself",
    )
    return host


def _named(text: str) -> str:
    """What a script leaves empty by mistake (`--host "$BOX"`) does not mean this machine."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty. Leave the option out for this machine's own daemon")
    return text


def _folder(text: str) -> Path:
    return Path(_named(text))


def add_command(
    commands: Commands, name: str, handler: str, help: str, *, daemon: bool = True, far: Far | None = None
) -> argparse.ArgumentParser:
    """`daemon`: it talks to the daemon, so it takes --dir. `far`: what --host makes of it, by default talking to the
    daemon there, if it does that, and else running there."""
    description = help[0].upper() + help[1:] + "."
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=description, parents=[shared() if daemon else host()]
    )
    sub.set_defaults(handler=handler, far=far or ("daemon" if daemon else "there"), parser=sub)
    return sub


def settings(c: argparse.ArgumentParser, help: str) -> None:
    setting = c.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=help)
    completed_by(setting, completing.job_fields)


def job_file(c: argparse.ArgumentParser) -> None:
    c.add_argument("job", type=Path, metavar="JOB", help="job file")


# a name holds neither '#' nor ':'; a shell needs quotes for the first
JOB_HELP = "name or number; id:7 or '#7' is the number in any case, also where a job is called 7"


def job_name(
    c: argparse._ActionsContainer, help: str = JOB_HELP, *, nargs: str | None = None, dest: str = "job"
) -> None:
    """A job by its name or number, which a shell completes; several with `dest` jobs."""
    metavar = dest.removesuffix("s").upper()
    completed_by(c.add_argument(dest, nargs=nargs, metavar=metavar, help=help), completing.job_names)


def job_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of jobs: write JOB or JOB,JOB")
    return names


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def out(c: argparse.ArgumentParser, when: str = "") -> None:
    text = f"{when}parent of the run folder (default: `runs` beside the job file)"
    c.add_argument("--out", type=Path, metavar="DIR", help=text)


def going_on(c: argparse.ArgumentParser) -> None:
    """What every command that resumes a run takes."""
    c.add_argument(
        "--from",
        type=positive,
        dest="from_step",
        metavar="STEP",
        help="go back to the checkpoint of this step; what came after it is set aside",
    )
    c.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although the job file has changed in ways that break exactness",
    )


def at_the_end(c: argparse.ArgumentParser) -> None:
    """What every command that submits a job takes."""
    group = c.add_argument_group(
        "when it is over",
        "Commands that the daemon runs with /bin/sh when the job has ended so, with the run in their environment"
        " (WANLORA_JOB, WANLORA_STATE, WANLORA_RUN_DIR, WANLORA_FILES and more, see docs/when-it-is-over.md). They"
        " take the place of those in settings.toml; '' means none.",
    )
    group.add_argument("--on-done", metavar="CMD", help="when it is done, such as: --on-done 'sudo poweroff'")
    group.add_argument("--on-failed", metavar="CMD", help="when it has failed")
    group.add_argument("--on-stopped", metavar="CMD", help="when it has stopped or was cancelled")


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def minutes(text: str) -> int:
    """Of H:MM or H:MM:SS."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts) or not any(map(int, parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 12:00 (hours and minutes)")
    return 60 * int(parts[0]) + int(parts[1]) + (1 if parts[2:] and int(parts[2]) else 0)


def gib(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e5:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory in GiB")
    return size


def seq(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def step_or_all(text: str) -> int:
    """-1 for all."""
    if text == "all":
        return -1
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no step: a whole number, or all")
    return int(text)


def completion(commands: Commands) -> None:
    c = add_command(
        commands,
        "completion",
        "install:completion",
        "print the script with which your shell completes wanlora's commands, options and jobs",
        daemon=False,
        far="no",
    )
    c.formatter_class = argparse.RawDescriptionHelpFormatter
    c.epilog = COMPLETION
    shell = c.add_argument("shell", metavar="|".join(completing.SHELLS), help="which")
    completed_by(shell, completing.shells)
    c.set_defaults(shells=completing.SHELLS, needs_home=False)


COMPLETION = """\
Once, and then open a new shell:
  bash   mkdir -p ~/.local/share/bash-completion/completions
         wanlora completion bash > ~/.local/share/bash-completion/completions/wanlora
         (without the package bash-completion, in ~/.bashrc: eval "$(wanlora completion bash)")
  zsh    in ~/.zshrc, behind compinit: eval "$(wanlora completion zsh)"
  fish   wanlora completion fish > ~/.config/fish/completions/wanlora.fish
"""
