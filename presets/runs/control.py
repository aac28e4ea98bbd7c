"""What reaches a running trainer as a file: RUN/control/NAME.json, written aside and renamed in, read and deleted by
the trainer.

    {"id": ..., "command": "stop"|"save"|"sample"|"set", "field": "training.lr", "value": "5e-5"}

`field` and `value` belong to `set` alone; the value is TOML text as after `--set`.
"""

from typing import Literal, get_args

import msgspec
from msgspec import Struct

from presets.errors import UserError

CONTROL_DIR = "control"
Verb = Literal["stop", "save", "sample", "set"]


class ControlFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One control file's content."""

    id: str = ""  # what the event that honours or refuses it names, so that a command is honoured once
    command: Verb
    field: str = ""
    value: str = ""


def parse_control(content: bytes) -> ControlFile:
    """Raises UserError for what is no command. The field and value of a set are looked at when it is honoured."""
    try:
        return msgspec.json.decode(content, type=ControlFile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise UserError(f"not a command: {e}", fix=f"The commands are: {', '.join(get_args(Verb))}") from None
