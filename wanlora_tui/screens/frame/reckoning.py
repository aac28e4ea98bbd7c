"""The forecast and the findings of the draft, made anew after every change, in a thread: the newest change wins.

What is reckoned is wanlora_tui.draft.forecast's and presets.rules'; where it is shown, the wizard's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct
from textual import on, work
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Static

from daemon.settings import CostSettings, load_settings
from presets.base.composition import named_base
from presets.base.model_facts import read_model
from presets.clips.clip_facts import DatasetFacts
from presets.clips.likeness.alike import Twin, copies
from presets.errors import JobError, UserError
from presets.facts.facts import Facts
from presets.facts.gather import COPY, LIKE, groups_of, installed_packages, read_run_folder
from presets.facts.held_out import hold_out
from presets.findings import Finding
from presets.job.fields import toml_text
from presets.job.schema import Job
from presets.job.toml_file import default_out
from presets.look import Look
from presets.machine.machine import Machine
from presets.rules.check import check_job
from wanlora_tui.draft.forecast import Forecast, reckon, summary
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.output.formatting import fitted
from wanlora_tui.widgets.field_input import FieldInput
from wanlora_tui.widgets.redraw_throttle import Rest

PAUSE = 0.25  # seconds without a change before it is reckoned
CLOCK = 20.0  # seconds between two looks at the clock: when it is done follows it
OLD = 0.4  # seconds after a change from which what is shown is marked as old


class Question(Struct, frozen=True):
    """A job and what is known of it, to be reckoned in a thread."""

    revision: int
    job: Job
    file: Path  # the job file that it becomes
    machine: Machine
    datasets: list[DatasetFacts] | None  # None: clips are still being read
    known: Facts | None  # what a longer look has found: cuts, masks, the Hub
    twins: Sequence[tuple[str, Iterable[Twin]]]  # by folder as it was read: its clips that are there twice
    settings: Path


@dataclass
class Reckoned(Message):
    """`findings` None: the clips are not known yet."""

    revision: int
    found: Forecast
    cost: CostSettings
    findings: list[Finding] | None
    held_out: dict[str, set[str]]  # by folder as it was read: paths of its clips that measure the loss alone


def cost_of(settings: Path) -> CostSettings:
    """What the settings say of the price; nothing while they cannot be read, which the daemon says."""
    try:
        return load_settings(settings).cost
    except UserError:
        return CostSettings()


def answer(asked: Question) -> Reckoned:
    """The forecast of a job, and what the rules say of it."""
    base, known = asked.file.parent, asked.known
    named, out = named_base(asked.job), default_out(asked.file)
    datasets, held_out = hold_out(asked.job, asked.datasets or [])
    facts = Facts(
        base=base,
        datasets=datasets,
        held_out=held_out,
        machine=asked.machine,
        model=read_model(named, base),
        named=named,
        out=out,
        run=read_run_folder(asked.job, base, out),
        cuts=known.cuts if known else {},
        copies=_copies(asked, datasets),
        alike=[group for folder, twins in asked.twins for group in groups_of(folder, twins, LIKE)],
        shades=known.shades if known else {},
        fetching=known.fetching if known and known.named == named else None,
        packages=installed_packages(),
    )
    findings = check_job(asked.job, facts) if asked.datasets is not None else None
    held: dict[str, set[str]] = {}
    for one in held_out.clips if held_out is not None and asked.datasets is not None else []:
        if one.dataset < len(datasets):  # else of a folder of their own
            held.setdefault(one.root, set()).add(one.clip.path)
    return Reckoned(asked.revision, reckon(asked.job, facts), cost_of(asked.settings), findings, held)


def _copies(asked: Question, datasets: Sequence[DatasetFacts]) -> list[list[str]]:
    """Those of one folder were found when it was read; of several, few more files are of one size."""
    if len(datasets) > 1:
        return copies([clip for found in datasets for clip in found.clips], Look())
    return [group for folder, twins in asked.twins for group in groups_of(folder, twins, COPY)]


def instead(state: WizardState) -> str:
    """What is reckoned with where something is typed that is no value, to stand before what comes of it; else ""."""
    taken = [f"{f.field} = {toml_text(state.value(f.field))}" for f in state.findings()]
    return f"! with {', '.join(taken)}, not what is typed · " if taken else ""


class ForecastLine(Static):
    """What counts of a job, in as many whole parts as there is room for."""

    def __init__(self) -> None:
        super().__init__("", id="forecast-line", markup=False)
        self._text, self.is_old = "", False

    def say(self, text: str, *, old: bool = False) -> None:
        """Not by a class of its own when it is old: that has its styles looked up at a key."""
        if (text, old) != (self._text, self.is_old):
            self._text, self.is_old = text, old
            self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        if self.size.width:  # else it is not shown, and drawn once it is
            text = fitted(self._text, self.size.width, self.size.height)
            self.update(Content.styled(text, "$text-muted italic" if self.is_old else ""), layout=False)


class ReckoningScreen(Screen[Any]):
    """A screen with a ForecastLine that follows its state. `reckoned` is called when something is there."""

    state: WizardState

    def __init__(self) -> None:
        super().__init__()
        self.forecast: Forecast | None = None
        self.before: Forecast | None = None  # as it was before the change that is being made
        self.findings: list[Finding] | None = None  # of the draft as last checked
        self.known: Facts | None = None
        self.cost = CostSettings()
        self._revision = 0
        self._pausing = Rest(self, self._ask, PAUSE)
        self._growing_old: Timer | None = None
        self._reckoning = False
        self._changing: str | None = None  # the field that is being changed

    def on_mount(self) -> None:
        self.set_interval(CLOCK, self._say_anew)

    def rows(self) -> Iterable[FieldInput]:
        """The fields that stand there."""
        raise NotImplementedError

    def looked(self) -> list[Finding] | None:
        """What a longer look has found about the job as it is now; None while there is none."""
        raise NotImplementedError

    def reckoned(self) -> None:
        """Show what the forecast and the findings say by now."""
        raise NotImplementedError

    def changing(self, path: str | None) -> None:
        """What the next forecasts are compared with: how it was before the field began to change. "" for a change that
        is whole in itself, None when the fields are left alone."""
        if path != self._changing or path == "":
            self._changing = path
            if path is not None:
                self.before = self.forecast

    def reckon_soon(self) -> None:
        """Reckon once no key comes for a moment. What is shown is marked as old when that takes longer: at once, it
        would be drawn twice more for each key, with all that stands between it and the field."""
        self._revision += 1
        if not self.state.ready:  # what was found of a job that is none any more is found no more
            self.findings = None
            return
        if self.forecast is None:
            self._mark_old()
        elif self._growing_old is None:
            self._growing_old = self.set_timer(OLD, self._mark_old)
        self._pausing.ask()

    def _ask(self) -> None:
        if self._reckoning or not self.state.ready:  # one at a time: what follows asks again
            return
        state, machine = self.state, self.state.machine
        assert machine is not None
        try:
            job = state.job()
        except JobError:  # what cannot stand together is said at its field
            return
        found = [state.found(i) for i in range(len(state.draft.folders))]
        datasets = [d for d in found if d is not None]
        twins = [(state.scans[f].path, t.values()) for f, t in state.twins.items() if f in state.scans]
        self._reckoning = True
        self._answer(
            Question(
                self._revision,
                job,
                state.job_path(),
                machine,
                datasets if len(datasets) == len(found) else None,
                self.known,
                twins,
                state.settings,
            )
        )

    @work(thread=True, group="forecast", exit_on_error=False, description="reckon")
    def _answer(self, asked: Question) -> None:
        try:
            self.post_message(answer(asked))
        finally:
            self.app.call_from_thread(self._answered, asked.revision)

    def _answered(self, revision: int) -> None:
        self._reckoning = False
        if revision != self._revision:
            self._ask()

    @on(Reckoned)
    def _reckoned(self, event: Reckoned) -> None:
        if event.revision != self._revision:
            return
        if self._growing_old is not None:
            self._growing_old.stop()
            self._growing_old = None
        self.forecast, self.cost, self.state.means = event.found, event.cost, event.found.means
        looked = self.looked()  # it may have answered first, and knows more of the same job
        self.findings = event.findings if looked is None else looked
        self.state.held_out = event.held_out
        for row in self.rows():
            row.set_meaning(event.found.means.get(row.path, ""))
        self.query_one(ForecastLine).set_class(bool(event.found.misfit), "problem")
        self._say(event.found)
        self.reckoned()

    def _say(self, forecast: Forecast) -> None:
        said = summary(forecast, self.cost, before=self.before)
        self.query_one(ForecastLine).say(instead(self.state) + said)

    def _say_anew(self) -> None:
        if self.forecast is not None and not self.query_one(ForecastLine).is_old:
            self._say(self.forecast)

    def _mark_old(self) -> None:
        line = self.query_one(ForecastLine)
        if not line.is_old:
            text = summary(self.forecast, self.cost) if self.forecast is not None else "reckoning time and memory"
            line.say(f"… {text}", old=True)
