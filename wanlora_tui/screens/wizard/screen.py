"""The wizard: six steps from nothing to a written, checked job file."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingsMap
from textual.containers import Horizontal, VerticalScroll
from textual.dom import DOMNode
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Button, Input, OptionList, Static

from presets.findings import Finding
from wanlora_tui.actions import bindings
from wanlora_tui.draft.clip_list import ClipLists
from wanlora_tui.draft.draft_store import Draft, Drafts
from wanlora_tui.draft.history import History
from wanlora_tui.draft.steps import NAMES, STEPS, position, step_of_field
from wanlora_tui.feeds.submitter import Submitter
from wanlora_tui.screens.frame.button_label import set_label
from wanlora_tui.screens.frame.checking import Checked
from wanlora_tui.screens.frame.field_search import FieldSearch, made
from wanlora_tui.screens.frame.help_area import HelpingScreen
from wanlora_tui.screens.frame.layout import LAYOUT
from wanlora_tui.screens.frame.reach import bring_in_sight, can_be_seen
from wanlora_tui.screens.frame.reckoning import ForecastLine, ReckoningScreen
from wanlora_tui.screens.frame.step_findings import Fix, Jump, StepFindings
from wanlora_tui.screens.frame.step_marks import MarkingScreen
from wanlora_tui.screens.wizard.captions import CaptionsPane
from wanlora_tui.screens.wizard.clips import ClipsPane
from wanlora_tui.screens.wizard.dialogs import Ask, StepHelp
from wanlora_tui.screens.wizard.kind import Chosen, KindPane
from wanlora_tui.screens.wizard.mending import ClipsChosen, MendingPane
from wanlora_tui.screens.wizard.offer import Offered, offer
from wanlora_tui.screens.wizard.pane import Edited, StepBox, StepPane
from wanlora_tui.screens.wizard.prompts import PromptRow, PromptsPane
from wanlora_tui.screens.wizard.review import ReviewPane
from wanlora_tui.screens.wizard.settings import SettingsPane
from wanlora_tui.screens.wizard.submitting import LaunchingScreen
from wanlora_tui.widgets.field_input import FieldInput, field_id
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.long_table import LongTable
from wanlora_tui.widgets.redraw_throttle import SparingScreen

SCAN_DELAY = 0.4  # seconds without a key before a folder that is being typed is read
SETTLED = 0.3  # seconds that Textual takes to scroll to what has got the focus
SHORT = 20  # rows below which the steps themselves scroll
# What the footer leaves out first, where there is no room: what has a button on its step, with the key on it
SPARE = ("wizard.remove", "wizard.fill_captions", "wizard.take_back", "wizard.add_trigger", "wizard.undo",
         "wizard.browse", "rows.choose", "wizard.leave_out", "wizard.add", "wizard.from_clips", "wizard.show_file",
         "wizard.fix_all", "wizard.recommended", "wizard.fix")  # fmt: skip

PANES = {"kind": KindPane, "prompts": PromptsPane, "review": ReviewPane}
CLIP_PANES = {"clips": ClipsPane, "captions": CaptionsPane}


class WizardScreen(LaunchingScreen, ReckoningScreen, HelpingScreen, MarkingScreen, SparingScreen[Any]):
    """Dismisses with the job that the daemon has accepted, or with None.

    Without a `submitter` the written job file is all that is wanted: then it dismisses with its absolute path.
    """

    BINDINGS = bindings(
        "wizard.help",
        "wizard.leave",
        "wizard.back",
        "wizard.next",
        "wizard.undo",
        "wizard.redo",
        "wizard.findings",
    )
    COMMANDS = Screen.COMMANDS | {FieldSearch}
    HORIZONTAL_BREAKPOINTS = [(0, "-cramped"), (60, "-tight"), (78, "-narrow"), (110, "-wide")]  # noqa: RUF012  (Textual's)
    VERTICAL_BREAKPOINTS = [(0, "-tiny"), (9, "-low"), (20, "-short"), (30, "-tall")]  # noqa: RUF012
    CSS = LAYOUT

    def __init__(
        self, draft_path: Path | None = None, submitter: Submitter | None = None, begin_with: Draft | None = None
    ) -> None:
        """`begin_with`: a draft that was made of a job; no other is offered then."""
        super().__init__()
        self._begin_with = begin_with
        self.submitter = submitter
        if submitter is not None:
            self.state.settings = submitter.settings
        self.lists = ClipLists(self.state)
        self.history = History(self.state.draft)
        self.drafts = Drafts(draft_path)
        self._box = StepBox(id="pane")
        self._pane: StepPane | None = None
        self._missed = False  # something was to be shown while the step in view was still being made
        self._going = asyncio.Lock()  # keys, the palette and dialogs may ask for steps at once

    def compose(self) -> ComposeResult:
        yield Static("", id="wizard-title", markup=False)
        with Horizontal(id="middle"):
            steps = OptionList(id="steps", compact=True, markup=False)
            steps.can_focus = False  # keys walk the steps; this list shows what was found, and takes the mouse
            yield steps
            yield self._box
        yield ForecastLine()
        with VerticalScroll(id="help-area", can_focus=False):
            yield Static("", id="help-text", markup=False)
        with Horizontal(id="nav"):
            yield Button("◀ Back ^D", id="back", compact=True)
            yield Static("", id="nav-state", markup=False)
            yield Button("Next ^G ▶", id="next", variant="primary", compact=True)
        yield FittingFooter(spare=SPARE, more=("wizard.redo", "wizard.read_again"))

    def on_mount(self) -> None:
        self._read_machine()
        self._begin()

    def on_unmount(self) -> None:
        self.end_looks()

    @property
    def pane(self) -> StepPane | None:
        return self._pane

    @property
    def takes_keys(self) -> bool:
        """Its first step can be typed in; the drafts that it offers before are dialogs of their own."""
        return self._pane is not None

    # The draft

    @work
    async def _begin(self) -> None:
        """Offer the drafts of wizards that have ended, then show the first step or the one where the draft was left."""
        begin_with = self._begin_with
        offered = Offered(begin_with, None) if begin_with else await offer(self.app, self.drafts, self.submitter)
        if offered is None:  # back to where the user came from, and the drafts stay
            self.dismiss(None)
            return
        self.state.draft, self.store = offered.draft, offered.store
        self.history = History(self.state.draft)
        self.state.refresh()
        self._scan()
        await self._machine_known()
        await self.go_to(self.step)
        self.freeze_between_keys()

    async def _machine_known(self) -> None:
        """Steps from the third on need the machine; it takes a moment to read."""
        if position(self.step) > position("clips"):
            self.state_words("… reading the machine")
            await self._machine_there.wait()

    def set_focus(self, widget: Widget | None, scroll_visible: bool = True, from_app_focus: bool = False) -> None:
        """What asked for the focus before its step was left does not get it."""
        if widget is None or not self._box.is_left(widget):
            super().set_focus(widget, scroll_visible, from_app_focus)

    @property
    def focus_chain(self) -> list[Widget]:
        return [widget for widget in super().focus_chain if can_be_seen(widget)]

    # Changes made in a step

    @on(FieldInput.Changed)
    def _field_changed(self, event: FieldInput.Changed) -> None:
        event.stop()
        event.row.taken()
        self.changing(event.path)
        if event.error:
            self.state.set_typed(event.path, event.text)
        else:
            self.state.set_value(event.path, event.value)
        self.keep()
        if event.path.endswith(("].path", ".caption_extension")):
            self.set_timer(SCAN_DELAY, self._scan)
        self.reckon_soon()
        self.resting.ask()
        if event.path.startswith("model.merge["):  # more fields come, and Tab may be typed right behind
            self.resting.now()

    @on(Edited)
    async def _edited(self, event: Edited) -> None:
        event.stop()
        self.changing("")
        self.history.close()
        self.keep()
        if event.scan:
            self._scan()
        if isinstance(event, Chosen):
            await self.action_next()
        else:
            self.show()

    def show(self) -> None:
        self.reckon_soon()
        self.resting.cancel()
        self.rested()

    def rested(self) -> None:
        if self.pane is None or not self.pane.is_mounted:
            self._missed = True
        elif self.state.ready or self.step in ("kind", "clips"):
            self.pane.follow()
        self.show_help(self.focused, self.step)
        self.list_steps()

    # Steps

    async def go_to(self, name: str, *, field: str = "") -> None:
        """Show a step, or the first one before it that must be filled in first; `field` gets the focus."""
        async with self._going:
            await self._go_to(name, field)

    async def _go_to(self, name: str, field: str) -> None:
        name = self.state.furthest(name)
        moved, self.state.draft.step = name != self.step, name
        self.state.drop_blank_merges()
        if name == "review" and self.state.is_behind:  # what is launched follows the last clip that was left out
            self.state.refresh()
        with self.app.batch_update():
            self._pane, self._missed = None, False
            self._pane = pane = await self._box.show(name, partial(self._new_pane, name, field), field)
            self.query_one("#forecast-line").display = name in ("settings", "prompts") and self.state.ready
        if self._missed:  # it has drawn itself from the state of before
            pane.bring_up_to_date()
        if self._box.came_back:  # the step stands there in one frame; title, help and focus follow in the next
            self.draw()
        self.query_one("#back", Button).disabled = name == NAMES[0]
        set_label(self.query_one("#next", Button), "Launch ^G ▶" if name == NAMES[-1] else "Next ^G ▶")
        self.list_steps()
        row = next(iter(self.query(f"#{field_id(field)}").results(FieldInput)), None) if field else None
        if row is not None:
            for around in row.ancestors:
                if isinstance(around, PromptRow):
                    around.unfold(row)
            row.control.focus()
        else:
            pane.focus_first()
        self.reckon_soon()
        self.show_help(None, self.step)
        if moved:  # also by the undo of the folder that a later step needs
            self.keep()

    def _new_pane(self, name: str, field: str) -> StepPane:
        if name == "settings":
            return SettingsPane(self.state, field=field)
        return CLIP_PANES[name](self.state, self.lists) if name in CLIP_PANES else PANES[name](self.state)

    async def go_to_field(self, field: str) -> None:
        """Show a field, and put the focus there; while there is no such field, where one makes it, and say how."""
        step = step_of_field(field)
        await self.go_to(step, field=field)
        if missing := f"{field}: {self.state.blocked(self.step)}" if self.step != step else made(field):
            self.say(missing)

    def in_place(self, paths: list[str]) -> bool:
        return isinstance(self.pane, MendingPane) and all(path.endswith("].exclude") for path in paths)

    async def went_to(self, paths: list[str]) -> None:
        self.keep()
        self._scan()
        self.changing("")
        if self.in_place(paths):  # of clips that are left out: the cursor stays where it is in a long table
            self.post_message(ClipsChosen())
            self.show()
            return
        path = next((p for p in paths if "." in p), "")
        shown = NAMES[:4] if self.step == "settings" else (self.step,)  # the settings have fields of those before too
        await self.go_to(self.step, field=path if step_of_field(path) in shown else "")

    # Findings

    @work
    async def action_findings(self, step: str = "") -> None:
        """What was found about a step (the one in view), each finding with its fix and the way to its field."""
        place = position(step or self.step)
        found = self.found_at(STEPS[place].name)
        if not found:
            return self.notify("Nothing was found about this step" + (" so far" if self.findings is None else ""))
        answer = await self.app.push_screen_wait(StepFindings(f"{place + 1} {STEPS[place].title}", found))
        if isinstance(answer, Fix):
            applied = self.state.apply([answer.finding])
            self.notify("\n".join(applied), title="Fixed")
            self.post_message(Edited(scan=True))
        elif isinstance(answer, Jump):
            await self.go_to_field(answer.field)

    def rows(self) -> list[FieldInput]:
        return self.pane.rows() if self.pane is not None else []

    def looked(self) -> list[Finding] | None:
        pane = self.pane
        return list(pane.rules_found) if isinstance(pane, ReviewPane) and not pane.checking else None

    def reckoned(self) -> None:
        if isinstance(self.pane, ClipsPane):
            self.pane.follow_held_out()
        self.list_steps()
        self.show_help(self.focused, self.step)

    @on(Checked)
    def _checked(self, event: Checked) -> None:
        """The review has looked longer than a reckoning does."""
        self.known = event.facts
        if (found := self.looked()) is not None:
            self.findings = found
            self.list_steps()

    @on(OptionList.OptionSelected, "#steps")
    async def _step_clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        name = NAMES[event.option_index]
        if name == self.step and self.found_at(name):
            self.action_findings()
        else:
            await self.go_to(name)

    @on(Jump)
    async def _jump(self, event: Jump) -> None:
        await self.go_to_field(event.field)

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
            self.launch(self.pane)
        elif self.pane is not None:
            await self.go_to(NAMES[position(self.step) + 1])

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
        self.changing(None)
        self.history.close()
        self.resting.now()
        self.show_help(event.widget, self.step)
        if self.size.height < SHORT:
            self.set_timer(SETTLED, partial(bring_in_sight, event.widget))

    @property
    def _binding_chain(self) -> list[tuple[DOMNode, BindingsMap]]:
        """The keys of the step in view work while its buttons below have the focus, too, or nothing has."""
        chain, pane = super()._binding_chain, self.pane
        if pane is None or any(node is pane for node, _ in chain):
            return chain
        at = next(i for i, (node, _) in enumerate(chain) if node is self)
        return [*chain[:at], (pane, pane._bindings.copy()), *chain[at:]]

    def action_step_help(self) -> None:
        nodes = [self, self.pane, *self.pane.query(LongTable)] if self.pane is not None else [self]
        offered = {
            b.id
            for node in nodes
            for kind in type(node).__mro__
            for b in kind.__dict__.get("BINDINGS", ())
            if isinstance(b, Binding) and b.id
        }
        self.app.push_screen(StepHelp(STEPS[position(self.step)], offered, typing=isinstance(self.focused, Input)))

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
            self.forget()
        if answer == "leave" and self.store is None:  # a copy of a job that nobody has changed yet
            self.keep()
        if answer in ("leave", "discard"):
            self.end_looks()
            self.dismiss(None)
