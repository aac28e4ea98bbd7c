"""The wizard: six steps from nothing to a written, checked job file."""

import time
from pathlib import Path

from textual import events, on, work
from textual.app import ComposeResult
from textual.containers import Container, Horizontal, VerticalScroll
from textual.widgets import Button, Footer, OptionList, Static
from textual.widgets.option_list import Option

from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from presets.job.toml_file import dump_job, save_job
from presets.text import sentences
from wanlora_tui.actions import bindings
from wanlora_tui.draft.draft_store import DraftError, Drafts, DraftStore
from wanlora_tui.draft.steps import NAMES, STEPS, position, step_of_field
from wanlora_tui.feeds.submitter import Submitter
from wanlora_tui.screens.wizard.captions import CaptionsPane
from wanlora_tui.screens.wizard.clips import ClipsPane
from wanlora_tui.screens.wizard.dialogs import Ask, StepHelp
from wanlora_tui.screens.wizard.kind import Chosen, KindPane
from wanlora_tui.screens.wizard.offer import offer
from wanlora_tui.screens.wizard.pane import Edited, StepPane
from wanlora_tui.screens.wizard.prompts import PromptsPane
from wanlora_tui.screens.wizard.reading import ReadingScreen
from wanlora_tui.screens.wizard.review import Jump, ReviewPane
from wanlora_tui.screens.wizard.settings import SettingsPane
from wanlora_tui.screens.wizard.submitting import hand_in
from wanlora_tui.widgets.field_input import FieldInput, field_id

SCAN_DELAY = 0.4  # seconds without a key before a folder that is being typed is read
PROGRESS = 0.25  # seconds between two looks at how far a scan is


PANES = {"kind": KindPane, "clips": ClipsPane, "captions": CaptionsPane, "prompts": PromptsPane, "review": ReviewPane}


class WizardScreen(ReadingScreen):
    """Dismisses with the job that the daemon has accepted, or with None.

    Without a `submitter` the written job file is all that is wanted: then it dismisses with its absolute path.
    """

    BINDINGS = bindings("wizard.help", "wizard.leave", "wizard.back", "wizard.next")
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012  (Textual's own declaration)
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012
    CSS = """
    WizardScreen #wizard-title { height: 1; padding: 0 1; background: $primary 20%; text-style: bold; }
    WizardScreen #middle { height: 1fr; }
    WizardScreen #steps {
        width: 28; height: 1fr; border: none; border-right: solid $primary 40%; padding: 1; display: none;
        background: transparent;
    }
    WizardScreen.-wide #steps { display: block; }
    WizardScreen #pane { width: 1fr; height: 1fr; }
    WizardScreen #help-area { height: 5; border-top: solid $primary 60%; border-title-color: $primary; padding: 0 1; }
    WizardScreen.-tall #help-area { height: 6; }
    WizardScreen #help-text { height: auto; }
    /* over the pane: the help, the buttons and the footer stay in view; a row more, because a notice of many lines
       reaches one further down */
    WizardScreen ToastRack { margin-bottom: 8; }
    WizardScreen.-tall ToastRack { margin-bottom: 9; }
    WizardScreen #nav { height: 1; padding: 0 1; }
    WizardScreen #nav Button { min-width: 0; width: 14; }
    WizardScreen #nav-state { width: 1fr; content-align: center middle; color: $text-muted; }
    """

    def __init__(self, draft_path: Path | None = None, submitter: Submitter | None = None) -> None:
        super().__init__()
        self.submitter = submitter
        self.drafts = Drafts(draft_path)
        self.store: DraftStore | None = None  # this wizard's own, from its first change on
        self._draft_problem = ""
        self._said = ("", "")  # title and text of the help area

    def compose(self) -> ComposeResult:
        yield Static("", id="wizard-title", markup=False)
        with Horizontal(id="middle"):
            steps = OptionList(id="steps", compact=True, markup=False)
            steps.can_focus = False  # F7 and F8 walk the steps; this list shows where one is, and takes the mouse
            yield steps
            yield Container(id="pane")
        with VerticalScroll(id="help-area", can_focus=False):
            yield Static("", id="help-text", markup=False)
        with Horizontal(id="nav"):
            yield Button("◀ Back F7", id="back", compact=True)
            yield Static("", id="nav-state", markup=False)
            yield Button("Next F8 ▶", id="next", variant="primary", compact=True)
        yield Footer()

    def on_mount(self) -> None:
        self._read_machine()
        self._begin()
        self.set_interval(PROGRESS, self._show_progress)

    def on_unmount(self) -> None:
        self.end_looks()
        if self.store is not None:
            self.store.release()

    @property
    def pane(self) -> StepPane | None:
        panes = self.query(StepPane)
        return panes.first() if panes else None

    @property
    def step(self) -> str:
        return self.state.draft.step

    # The draft

    @work
    async def _begin(self) -> None:
        """Offer the drafts of wizards that have ended, then show the first step or the one where the draft was left."""
        offered = await offer(self.app, self.drafts, self.submitter)
        if offered is None:  # back to where the user came from, and the drafts stay
            self.dismiss(None)
            return
        self.state.draft, self.store = offered.draft, offered.store
        self.state.refresh()
        self._scan()
        await self._machine_known()
        await self.go_to(self.step)

    async def _machine_known(self) -> None:
        """Steps from the third on need the machine; it takes a moment to read."""
        if position(self.step) > position("clips"):
            self.query_one("#nav-state", Static).update("… reading the machine")
            await self._machine_there.wait()

    def _keep(self) -> None:
        """Save the draft. A failure is shown, and typing continues."""
        problem = ""
        try:
            if self.store is None:
                self.store = self.drafts.begin(self.state.draft)
            else:
                self.store.save(self.state.draft)
        except DraftError as e:
            problem = str(e)
            if problem != self._draft_problem:
                self.notify(problem, severity="error", timeout=20)
        self._draft_problem = problem

    def _show_progress(self) -> None:
        if self.pane is not None and self.pane.is_mounted and self.looking:
            self.pane.show_progress()

    # Changes made in a step

    @on(FieldInput.Changed)
    def _field_changed(self, event: FieldInput.Changed) -> None:
        event.stop()
        event.row.taken()
        if event.error:
            self.state.set_typed(event.path, event.text)
        else:
            self.state.set_value(event.path, event.value)
        self._keep()
        if event.path.endswith("].path"):
            self.set_timer(SCAN_DELAY, self._scan)
        self.show()

    @on(Edited)
    async def _edited(self, event: Edited) -> None:
        event.stop()
        self._keep()
        if event.scan:
            self._scan()
        if isinstance(event, Chosen):
            await self.action_next()
        else:
            self.show()

    def show(self) -> None:
        if self.pane is not None and (self.state.ready or self.step in ("kind", "clips")):
            self.pane.bring_up_to_date()
        self._show_help(self.focused)

    # Steps

    async def go_to(self, name: str, *, field: str = "") -> None:
        """Show a step, or the first one before it that must be filled in first; `field` gets the focus."""
        name = self.state.furthest(name)
        self.state.draft.step = name
        pane = SettingsPane(self.state, field=field) if name == "settings" else PANES[name](self.state)
        box = self.query_one("#pane", Container)
        with self.app.batch_update():
            await box.remove_children()
            await box.mount(pane)
        place = position(name)
        self.query_one("#wizard-title", Static).update(
            f"New LoRA job · step {place + 1} of {len(STEPS)} · {STEPS[place].title}"
        )
        self.query_one("#nav-state", Static).update("the draft is kept as you type")
        self.query_one("#back", Button).disabled = place == 0
        self.query_one("#next", Button).label = "Launch F8 ▶" if name == NAMES[-1] else "Next F8 ▶"
        self._list_steps()
        rows = self.query(f"#{field_id(field)}").results(FieldInput) if field else ()
        row = next(iter(rows), None)
        if row is not None:
            row.control.focus()
        else:
            pane.focus_first()
        self._show_help(None)

    def _list_steps(self) -> None:
        steps, place = self.query_one("#steps", OptionList), position(self.step)
        steps.clear_options()
        for i, step in enumerate(STEPS):
            glyph = "▶" if i == place else "✓" if i < place else " "
            steps.add_option(
                Option(f"{glyph} {i + 1} {step.title}", disabled=self.state.furthest(step.name) != step.name)
            )
        steps.highlighted = place

    @on(OptionList.OptionSelected, "#steps")
    async def _step_clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        await self.go_to(NAMES[event.option_index])

    @on(Jump)
    async def _jump(self, event: Jump) -> None:
        await self.go_to(step_of_field(event.field), field=event.field)

    @on(Button.Pressed, "#back")
    async def action_back(self) -> None:
        if position(self.step) > 0:
            await self.go_to(NAMES[position(self.step) - 1])

    @on(Button.Pressed, "#next")
    async def action_next(self) -> None:
        problem = self.state.blocked(self.step)
        if problem:
            self.notify(problem, severity="warning")
        elif isinstance(self.pane, ReviewPane):
            self._launch(self.pane)
        elif self.pane is not None:
            await self.go_to(NAMES[position(self.step) + 1])
            self._keep()

    async def action_step_action(self, name: str) -> None:
        """Run an action of the step in view: keys, the footer and the palette all come through here."""
        if self.pane is not None:
            await self.pane.run_action(name)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "step_action" and self.pane is not None:
            return self.pane.check_action(str(parameters[0]), ())
        return super().check_action(action, parameters)

    # Help

    @on(events.DescendantFocus)
    def _focus_moved(self, event: events.DescendantFocus) -> None:
        self._show_help(event.widget)

    def _show_help(self, focused: object) -> None:
        """What the focused field means, or what this step wants."""
        row = (
            next((n for n in focused.ancestors if isinstance(n, FieldInput)), None)
            if hasattr(focused, "ancestors")
            else None
        )
        area, text = self.query_one("#help-area"), self.query_one("#help-text", Static)
        step = STEPS[position(self.step)]
        said = (row.help_title(), row.help_lines()) if row is not None else (step.title, step.hint)
        if said != self._said:
            self._said = said
            area.border_title = said[0]
            text.update(said[1])
            area.scroll_home(animate=False)

    def action_step_help(self) -> None:
        self.app.push_screen(StepHelp(STEPS[position(self.step)]))

    # Leaving and launching

    @work
    async def action_leave(self) -> None:
        if self.state.draft.is_empty:
            self.dismiss(None)
            return
        text = "What you have entered is kept, and offered again the next time you start a new job."
        answer = await self.app.push_screen_wait(
            Ask(
                "Leave the wizard?",
                text,
                {"leave": "Leave, keep the draft", "stay": "Stay", "discard": "Throw it away"},
            )
        )
        if answer == "discard":
            self._forget()
        if answer in ("leave", "discard"):
            self.end_looks()
            self.dismiss(None)

    def _forget(self) -> None:
        """Delete the draft: it was thrown away, or has become a job."""
        if self.store is not None:
            try:
                self.store.delete()
            except DraftError as e:
                self.notify(str(e), severity="error", timeout=20)

    @work(exclusive=True, group="launch")
    async def _launch(self, review: ReviewPane) -> None:
        """Write the job file and hand it in, unless something stands in the way: then say what, and stay."""
        errors = [f for f in review.findings if f.severity == "error"]
        problem = self.state.path_problem()
        if errors:
            names = ", ".join(f"{f.field} ({f.code})" for f in errors[:4]) + (
                f" and {len(errors) - 4} more" if len(errors) > 4 else ""
            )
            self.notify(f"Fix first: {names}", title="Not launched", severity="error", timeout=10)
            review.focus_first()
        elif review.checking:
            self.notify("Still checking the job: one moment, then press F8 again.", severity="warning")
        elif problem:
            self.notify(problem, title="Not launched", severity="error")
            review.query_one("#job-path").focus()
        elif await self._may_write(self.state.job_path()):
            path = self.state.job_path().absolute()
            job = self.state.written_job()
            sent_before = (
                self.state.draft.launched_at
                if self.state.draft.launched == str(path) and self.state.wrote(path)
                else 0.0
            )
            try:
                save_job(job, path, fresh=True)
            except UserError as e:
                review.refuse(
                    [
                        sentences(
                            f"The job file {path} {e.what}",
                            "Make room there or repair it, or choose another place above",
                        )
                    ]
                )
                return
            self.state.written[path] = dump_job(job)
            if self.submitter is None:
                self._forget()
                self.dismiss(str(path))
            else:
                await self._hand_in(review, self.submitter, path, sent_before)

    async def _hand_in(self, review: ReviewPane, submitter: Submitter, path: Path, sent_before: float) -> None:
        """Wait for the daemon's answer. The draft says meanwhile that it is under way, in case this program is
        killed."""
        draft = self.state.draft
        draft.launched, draft.launched_at = str(path), sent_before or time.time()
        self._keep()
        answer = await hand_in(self, submitter, path, sent_before)
        if isinstance(answer, JobRecord):
            self._forget()
            self.dismiss(answer)
            return
        if not answer.may_be_taken:
            draft.launched = ""
            self._keep()
        review.refuse(answer.reasons)

    async def _may_write(self, path: Path) -> bool:
        if not path.exists() or self.state.wrote(path):
            return True
        answers = {"replace": "Replace it", "keep": "Choose another name"}
        answer = await self.app.push_screen_wait(Ask("Replace this file?", f"{path} exists already.", answers))
        if answer != "replace" and self.pane is not None:
            self.pane.query_one("#job-path").focus()
        return answer == "replace"
