"""Commands to a running trainer: RUN/control/NAME.json, written aside and renamed in (daemon.jobs.control_files), read
and deleted by the trainer (engine.runfolder.control).

    {"id": ..., "command": "stop"|"save"|"sample"|"set", "field": "training.lr", "value": "5e-5"}

`field` and `value` belong to `set` alone; the value is TOML text as after `--set`.
"""

from typing import Literal, get_args

import msgspec
from msgspec import Struct

from presets.errors import UserError

CONTROL_DIR = "control"
Verb = Literal["stop", "save", "sample", "set"]


class TrainerCommand(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command to a running trainer: one control file's content."""

    id: str = ""  # named by the event that applies or refuses it (presets.runs.events.COMMAND_ID): it is applied once
    command: Verb
    field: str = ""
    value: str = ""


def parse_control(content: bytes) -> TrainerCommand:
    """Raises UserError for what is no command. The field and value of a set are looked at when it is applied."""
    try:
        return msgspec.json.decode(content, type=TrainerCommand)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise UserError(f"not a command: {e}", fix=f"The commands are: {', '.join(get_args(Verb))}") from None
