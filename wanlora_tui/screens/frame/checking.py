"""What the review knows of the job: the rules are asked in a thread, and again after every change.

What is found is presets.rules's; how it is shown, wanlora_tui.screens.wizard.review's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from textual import on, work
from textual.message import Message
from textual.widget import Widget

from daemon.settings import CostSettings
from daemon.wire.list_messages import PlannedTime
from presets.base.composition import named_base
from presets.base.fetch_plan import fetching_of
from presets.errors import JobError
from presets.facts.facts import Facts
from presets.facts.gather import gather, read_run_folder
from presets.facts.lora_values import loras_of
from presets.findings import Finding
from presets.job.schema import Job
from presets.job.toml_file import default_out
from presets.look import Look, LookEnded
from presets.machine.machine import Machine
from presets.rules.check import SEVERITIES, check_job
from wanlora_tui.draft.forecast import Forecast, reckon
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.output.formatting import home_path
from wanlora_tui.screens.frame.reckoning import cost_of


@dataclass
class Checked(Message):
    """The findings of a check. More will follow while `done` is false: scene cuts take longer than the rest."""

    revision: int
    facts: Facts
    clips: object  # what of the job says which clips they are of
    findings: list[Finding]
    done: bool
    forecast: Forecast
    cost: CostSettings


def _clips_of(job: Job) -> object:
    """What says which clips train, and which measure the loss."""
    return [(d.path, d.caption_extension, d.mask, d.exclude) for d in job.datasets], job.validation


@dataclass
class NotChecked(Message):
    """The check has died, maybe after some of its findings had come."""

    revision: int
    problem: str


class CheckingPane(Widget):
    """A step that checks the whole job. `show_findings` is called when more is known, `show_checking` when a check
    begins."""

    state: WizardState
    look: Look | None  # at clips, for the check that is under way

    def __init__(self) -> None:
        super().__init__()
        self.revision = 0  # rises with every check asked for; older answers are dropped
        self.checking = True  # the rules have not answered yet
        self.watching = False  # every frame is being looked at, for damage and scene cuts: slow with many clips
        self.facts: Facts | None = None
        self.clips: object = None  # as in Checked
        self.findings: list[Finding] = []
        self.rules_found: list[Finding] = []  # those of them that the rules have made
        self.forecast: Forecast | None = None
        self.cost = CostSettings()

    def on_unmount(self) -> None:
        if self.look is not None:
            self.look.end()

    def show_checking(self) -> None:
        """Say that a check is under way."""
        raise NotImplementedError

    def show_findings(self) -> None:
        """Show what is known by now."""
        raise NotImplementedError

    @property
    def planned(self) -> PlannedTime | None:
        """What the run is expected to take, for the daemon."""
        return self.forecast.planned if self.forecast is not None else None

    def check_anew(self) -> None:
        """Ask the rules about the job as it is now; what was asked before is dropped."""
        self.revision += 1
        self.checking = True
        if self.look is not None:
            self.look.end()
        self.look = None
        self.show_checking()
        try:
            job = self.state.job()
        except JobError as e:
            self.findings = self.state.findings() or [
                Finding(
                    code="job-file", severity="error", field="job", message=str(e), fix="Change the field that it names"
                )
            ]
            self.checking = False
            self.show_findings()
            return
        assert self.state.machine is not None
        self.look = Look()
        known = self.facts if self.clips == _clips_of(job) else None
        self._check(self.revision, job, self.state.job_path().parent, self.state.machine, known, self.look)

    @work(thread=True, group="check", exit_on_error=False)
    def _check(self, revision: int, job: Job, base: Path, machine: Machine, known: Facts | None, look: Look) -> None:
        out = default_out(self.state.job_path())
        if known is not None and known.cuts and self._same_model(known, job, base):
            facts = msgspec.structs.replace(known, base=base, out=out, run=read_run_folder(job, base, out))
            self.post_message(self._found(revision, job, facts, done=True))
            return
        try:
            facts = gather(job, base, out=out, machine=machine, scenes=False, look=look)
            self.post_message(self._found(revision, job, facts, done=False))
            # what the Hub says need not wait for the cuts
            facts = msgspec.structs.replace(
                facts, fetching=fetching_of(named_base(job), base, raise_if_ended=look.raise_if_ended)
            )
            if facts.fetching is not None:
                self.post_message(self._found(revision, job, facts, done=False))
            facts = gather(job, base, out=out, machine=machine, ask_hub=True, look=look)
            self.post_message(self._found(revision, job, facts, done=True))
        except LookEnded:
            return
        except Exception as e:
            self.post_message(NotChecked(revision, f"{type(e).__name__}: {e}"))

    @on(NotChecked)
    def _not_checked(self, event: NotChecked) -> None:
        event.stop()
        if event.revision == self.revision:
            fix = "Go a step back and here again to check once more"
            message = f"The check has died: {event.problem}"
            died = Finding(code="not-checked", severity="error", field="job", message=message, fix=fix)
            self.checking = self.watching = False
            self.look = None
            self.findings = [died, *self.state.findings(), *self.rules_found]
            self.show_findings()

    def _found(self, revision: int, job: Job, facts: Facts, *, done: bool) -> Checked:
        clips, findings = _clips_of(job), check_job(job, facts)
        return Checked(revision, facts, clips, findings, done, reckon(job, facts), cost_of(self.state.settings))

    def _same_model(self, known: Facts, job: Job, base: Path) -> bool:
        loras = {str(path) for path in loras_of(job, base).values()}
        return known.named == named_base(job) and known.base == base and loras <= known.lora_values.keys()

    @on(Checked)
    def _checked(self, event: Checked) -> None:
        if event.revision != self.revision:
            event.stop()
            return
        self.facts, self.clips, self.checking, self.watching = event.facts, event.clips, False, not event.done
        self.forecast, self.cost = event.forecast, event.cost
        if event.done:
            self.look = None
        self.rules_found = [*event.findings, *self._same_run(event.facts)]
        self.findings = sorted([*self.state.findings(), *self.rules_found], key=lambda f: SEVERITIES.index(f.severity))
        self.show_findings()

    def _same_run(self, facts: Facts) -> Iterator[Finding]:
        """The rules allow a run of this very job in its folder, because a resume may continue it; the wizard begins
        new runs, and they would be refused."""
        run = facts.run
        if run is not None and run.free_name and run.resume.verdict == "fits":
            yield Finding(
                code="run-folder-same-job",
                severity="error",
                field="job.name",
                message=f"{home_path(run.path)} holds a run of this job already",
                fix=(
                    f'Set job.name = "{run.free_name}" for a new run; or leave, and resume that one by r in the list of'
                    " jobs"
                ),
                set={"job.name": run.free_name},
            )
