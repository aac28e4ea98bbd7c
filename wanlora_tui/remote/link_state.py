"""How the connection to another machine is, for whoever draws it."""

from dataclasses import dataclass
from typing import Literal

# silent: nothing has come for seconds, another line is dialled. lost: that is tried again and again. must ask: ssh
# would have to ask a person, so nothing is tried until the user says so.
Kind = Literal["connecting", "connected", "silent", "lost", "must ask"]


@dataclass(frozen=True)
class LinkState:
    """At one moment."""

    kind: Kind
    since: float  # time.monotonic
    words: str = ""  # ssh's last ones
    daemon: str = ""  # what was wrong with the daemon there when it was last looked for
