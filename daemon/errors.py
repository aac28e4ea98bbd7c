"""What can be in the way between a client and the daemon."""

from presets.errors import UserError
from presets.findings import Finding


class DaemonError(UserError):
    """The daemon could not do what was asked."""


class NotRunning(DaemonError):
    """No daemon, or none that answers."""


class NotAnswering(NotRunning):
    """A daemon holds the lock and does not answer: it is hung, or still starting (`starting`)."""

    def __init__(self, what: str, *, fix: str = "", starting: bool = False) -> None:
        super().__init__(what, fix=fix)
        self.starting = starting


class Untrusted(NotRunning):
    """Where the daemon's sockets should be, another user has put something, or could."""


class VersionMismatch(DaemonError):
    """The daemon speaks another protocol version."""


class RequestRefused(DaemonError):
    """The daemon understood and refused; `findings` say more when the job itself is at fault."""

    def __init__(self, what: str, *, fix: str = "", findings: list[Finding] | None = None) -> None:
        super().__init__(what, fix=fix)
        self.findings = findings or []
