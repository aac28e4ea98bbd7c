"""What a shell completes beside commands, options and files: the names of jobs, the fields of a job. The script
for the shell is printed by wanlora_tui.commands.install; argcomplete does the rest."""

import argparse
import re

SHELLS = ("bash", "zsh", "fish")
LONGEST = 1.0  # seconds for the daemon's answer: somebody has pressed Tab


def job_names(
    prefix: str, action: argparse.Action, parser: argparse.ArgumentParser, parsed_args: argparse.Namespace
) -> list[str]:
    """Those of this machine's daemon. None of another machine's: no key press starts an ssh."""
    from daemon.wire.blocking import AnyVersionClient
    from daemon.wire.find import find
    from daemon.wire.protocol import PROTOCOL_VERSION
    from presets.errors import UserError

    if "host" in parsed_args or "connect" in parsed_args:
        return []
    try:
        with AnyVersionClient(find(vars(parsed_args).get("dir")), timeout=LONGEST) as daemon:
            daemon.hello()
            jobs = daemon.jobs().jobs if daemon.version == PROTOCOL_VERSION else []
    except UserError:
        return []
    begun, _, last = prefix.rpartition(",")  # of several, as in --after
    names = dict.fromkeys(job.name for job in reversed(jobs))
    return [f"{begun},{name}" if begun else name for name in names if name.startswith(last)]


def live_fields(
    prefix: str, action: argparse.Action, parser: argparse.ArgumentParser, parsed_args: argparse.Namespace
) -> list[str]:
    from presets.job.diff import LIVE_FIELDS

    return [f"{field}=" for field in LIVE_FIELDS]


def job_fields(
    prefix: str, action: argparse.Action, parser: argparse.ArgumentParser, parsed_args: argparse.Namespace
) -> list[str]:
    """Of a job file; behind the "=" the values of one that has few."""
    from presets.job.fields import FIELDS, toml_text

    name, given, _ = prefix.partition("=")
    if not given:
        return [f"{field}=" for field in FIELDS]
    field = FIELDS.get(re.sub(r"\[\d+\]", "", name))
    values = [toml_text(value).strip('"') for value in field.choices if value is not None] if field else []
    return [f"{name}={value}" for value in values]


def shells(
    prefix: str, action: argparse.Action, parser: argparse.ArgumentParser, parsed_args: argparse.Namespace
) -> list[str]:
    return list(SHELLS)


def completed_by(action: argparse.Action, completer: object) -> None:
    """Where argcomplete looks for it."""
    action.completer = completer  # type: ignore[attr-defined]
