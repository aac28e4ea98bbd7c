"""May a run resume with its job file as it is now: one answer, and one wording, for the trainer, the daemon, the rules
and whoever asks the user. Which fields may change is in presets.job.diff.

It fits; or it needs a yes, because from here on it would not be the run that was begun; or it is impossible, because
the checkpoints do not fit. How a yes is given differs from place to place, and so does the fix; nothing else does.
"""

import hashlib
import re
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

from presets.disk import exists
from presets.errors import UserError
from presets.job.diff import READ_ONCE, FieldChange, breaking, changes
from presets.job.schema import Job
from presets.job.toml_file import absolute_paths, load_job

JOB_FILE = "job.toml"  # in a run folder: the job as the trainer has accepted it
UNSEEN = "unseen"  # instead of a digest: accepted whatever it is, because the run's own job file cannot be read

Verdict = Literal["fits", "ask", "impossible"]


class ResumeCheck(Struct, frozen=True, kw_only=True):
    """How the job file differs from the job of the run, and what follows for a resume."""

    changes: list[FieldChange] = field(default_factory=list)  # all of them, as far as they are known
    # there is a checkpoint; before that nothing is impossible. Daemons and clients know it as `learnt`
    trained: bool = field(default=False, name="learnt")
    unreadable: str = ""  # why the job in the run folder cannot be read

    @property
    def impossible(self) -> list[FieldChange]:
        return [c for c in self.changes if self.trained and c.impossible]

    @property
    def verdict(self) -> Verdict:
        return "impossible" if self.impossible else "ask" if self.unreadable or breaking(self.changes) else "fits"

    @property
    def grounds(self) -> list[FieldChange]:
        """The changes that the verdict rests on."""
        return self.impossible or breaking(self.changes)

    @property
    def shown(self) -> list[FieldChange]:
        """All changes, in the order in which they matter."""
        return sorted(self.changes, key=lambda c: (c not in self.impossible, not c.breaks))

    @property
    def digest(self) -> str:
        """What an acceptance names: the changes that break exactness, as they were shown. Any other such change gives
        another digest."""
        if self.unreadable:
            return UNSEEN
        shown = sorted((c.field, c.old, c.new) for c in breaking(self.changes))
        return hashlib.sha256(msgspec.json.encode(shown)).hexdigest()[:32]

    @property
    def claim(self) -> str:
        """What is so, said of the run; without a full stop."""
        if self.verdict == "impossible":
            return "its job file has changed so that its checkpoints do not fit it"
        if self.unreadable:
            return f"the run's own {JOB_FILE} cannot be read ({self.unreadable}), so nobody can tell what has changed"
        return "its job file has changed " + (
            "so that from here on it would not be the run that was begun"
            if self.verdict == "ask"
            else "since this run was last started"
        )

    @property
    def question(self) -> str:
        return "Go on all the same?" if self.unreadable else "Go on with the changes?"

    def mark(self, change: FieldChange) -> str:
        """What a change does to the run, in a few words; "" for one that does no harm."""
        if change in self.impossible:
            return "does not fit the checkpoints"
        if self.trained and change.field in READ_ONCE:
            return "has no effect: a start is read when a run begins"
        return "breaks exactness" if change.breaks else ""

    def fix(self, *, accept: str, file: str = "the job file") -> str:
        """What to do about it. `accept`: how a yes is given here, in words that can follow "or"."""
        if self.verdict == "impossible":
            accept = "start a new run under another name"
        elif self.unreadable:
            return accept[:1].upper() + accept[1:]
        return f"Set {'it' if len(self.grounds) == 1 else 'them'} back in {file}, or {accept}"

    def require(
        self, accepted: str | None, *, where: str, accept: str, file: str = "the job file", lines: bool = False
    ) -> None:
        """Raise UserError with the difference (`lines`: each change on a line of its own) unless it fits, or just this
        was `accepted`, by its digest."""
        if self.verdict == "fits" or (self.verdict == "ask" and accepted == self.digest):
            return
        other = accepted is not None and self.verdict == "ask" and not self.unreadable
        what = "its job file has other changes by now than those that were accepted" if other else self.claim
        texts = [c.text for c in self.grounds]
        listed = ":" + "".join(f"\n  {text}" for text in texts) + "\n" if lines else f" ({'; '.join(texts)})"
        listed = listed if texts else ""
        raise UserError(what + listed, where=where, fix=self.fix(accept=accept, file=file))


def check_resume(before: Job | None, now: Job, *, trained: bool, unreadable: str = "") -> ResumeCheck:
    """`before`: the job of the run, as far as it is known. Both with absolute paths."""
    return ResumeCheck(changes=changes(before, now) if before else [], trained=trained, unreadable=unreadable)


def check_run_folder(run_dir: Path, now: Job, base: Path) -> ResumeCheck:
    """The same against the job that lies in a run folder; where none lies, everything fits. Paths of both are relative
    to `base`."""
    held, unreadable = held_job(run_dir, base)
    return check_resume(held, absolute_paths(now, base), trained=has_checkpoint(run_dir), unreadable=unreadable)


def held_job(run_dir: Path, base: Path) -> tuple[Job | None, str]:
    """The job that lies in a run folder, its paths absolute, and why it cannot be read; neither where none lies."""
    path = run_dir / JOB_FILE
    if not exists(path):
        return None, ""
    try:
        return absolute_paths(load_job(path), base), ""
    except UserError as e:
        return None, e.what


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a complete checkpoint lies there, also one that a killed writer has moved aside. That its files are whole
    shows only when it is read."""
    return any(
        re.fullmatch(r"step_\d{9}(\.old-\d+)?", folder.name) and (folder / "manifest.json").exists()
        for folder in (run_dir / "checkpoints").glob("step_*")
    )
