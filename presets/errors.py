"""Errors that a user can fix. Everything else is an assert or a bug."""

from presets.text import sentences


class UserError(ValueError):
    """Something the user gave us is wrong: says what, where, and how to fix it.

    The text reads `where: what. fix`, on one line, so that it can stand in a terminal, an event or a dialog.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(f"{where + ': ' if where else ''}{f'{sentences(what)} {fix}' if fix else what}")


class JobError(UserError):
    """A job file that cannot be read: one problem per line in `problems`, each with its full key path."""

    def __init__(self, problems: list[str], *, where: str = "", fix: str = "") -> None:
        self.problems = problems
        super().__init__("\n  ".join(problems), where=where, fix=fix)


class ClipError(UserError):
    """A file that cannot serve as a clip. `code` is its finding's: `not-a-video`, `clip-unreadable` or
    `clip-size-changes`."""

    def __init__(self, what: str, *, code: str, where: str = "", fix: str = "") -> None:
        self.code = code
        super().__init__(what, where=where, fix=fix)
