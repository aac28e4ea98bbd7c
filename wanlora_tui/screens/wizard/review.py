"""Step 6: what was found, with its fixes, what the job will do, and the job file.

Checking is wanlora_tui.screens.frame.checking's, the lines of what it will do wanlora_tui.draft.forecast's; handing it
in is wanlora_tui.screens.wizard.submitting's.
"""

from contextlib import suppress
from pathlib import Path

from rich.console import Group
from rich.padding import Padding
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Button, ContentSwitcher, Input, OptionList, Static
from textual.widgets.option_list import Option

from presets.errors import JobError
from presets.findings import Finding
from presets.job.schema import Job
from presets.job.toml_file import dump_job
from presets.rules.check import SEVERITIES
from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.draft.forecast import cost_line, forecast
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.output.formatting import home_path
from wanlora_tui.output.typed_paths import meant
from wanlora_tui.screens.frame.button_label import set_label
from wanlora_tui.screens.frame.checking import CheckingPane
from wanlora_tui.screens.frame.finding_text import HEADINGS, counted, entry
from wanlora_tui.screens.frame.reckoning import CLOCK, instead
from wanlora_tui.screens.frame.step_findings import Jump
from wanlora_tui.screens.wizard.pane import Choices, Edited, StepPane, look_text
from wanlora_tui.widgets.folder_picker import PathInput


class TextPage(VerticalScroll):
    BINDINGS = bindings("text.down", "text.up", "text.top", "text.bottom")


class ReviewPane(StepPane, CheckingPane):
    BINDINGS = bindings("wizard.fix", "wizard.fix_all", "wizard.show_file")
    DEFAULT_CSS = """
    ReviewPane #forecast { height: auto; }
    ReviewPane #path-label { width: 9; }
    ReviewPane #job-path { width: 1fr; }
    ReviewPane #path-note { height: auto; }
    ReviewPane #counts { width: 1fr; min-width: 14; text-style: bold; }
    ReviewPane ContentSwitcher { height: 1fr; min-height: 5; }
    ReviewPane #findings { height: 1fr; border: none; padding: 0; }
    ReviewPane #file { height: 1fr; border: none; }
    ReviewPane #file-text { height: auto; }
    """

    def __init__(self, state: WizardState) -> None:
        super().__init__(state)
        self.refusal: list[str] = []  # why the last launch came to nothing; cleared by the next change of the job
        self._refused: tuple[Job, Path] | None = None  # that launch

    def compose(self) -> ComposeResult:
        yield Static("", id="forecast", markup=False)
        with Horizontal(classes="row"):
            yield Static("Job file", id="path-label")
            yield PathInput(
                str(self.state.draft.job_path),
                base=self.state.cwd,
                placeholder=str(self.state.job_path()),
                id="job-path",
            )
        yield Static("", id="path-note", markup=False)
        with Horizontal(classes="row"):
            yield Static("", id="counts", markup=False)
            yield Button("Fix f", id="fix", compact=True)
            yield Button("Fix all F", id="fix-all", compact=True)
            yield Button("Job file t", id="show-file", compact=True)
        with ContentSwitcher(initial="findings"):
            yield Choices(id="findings", markup=False)
            with TextPage(id="file"):
                yield Static("", id="file-text", markup=False)

    def on_mount(self) -> None:
        self.bring_up_to_date()
        self.set_interval(CLOCK, self._show_forecast)

    def focus_first(self) -> None:
        self.query_one("#findings").focus()

    # Checking

    def bring_up_to_date(self) -> None:
        """Check again: called after every change of the job or of a fact."""
        self.refusal = []
        self.check_anew()

    def follow(self) -> None:
        """Of facts alone, such as clips that are alike, what was said of the last launch stays."""
        if self.refusal and self._asked() == self._refused:
            self.check_anew()
        else:
            super().follow()

    def refuse(self, reasons: list[str]) -> None:
        """Say in place why a launch came to nothing, and check again: what stood in its way may be a finding by now."""
        self.refusal, self._refused = reasons, self._asked()
        self.check_anew()
        self.show_findings()
        options = self.query_one("#findings", Choices)
        options.highlighted = 0
        options.scroll_home(animate=False)
        options.focus()

    def _asked(self) -> tuple[Job, Path] | None:
        """What would be launched now."""
        try:
            return self.state.job(), self.state.job_path()
        except JobError:
            return None

    # Showing

    def show_checking(self) -> None:
        self._show_path()
        self._show_counts()
        self._show_forecast()

    def _show_forecast(self) -> None:
        """When it is done follows the clock, also while nothing changes."""
        if self.facts is None or self.forecast is None:
            return
        lines: list[str] = []  # of a job that cannot be: why is among the findings
        with suppress(JobError):
            words = forecast(self.state.job(), self.facts)
            lines = [instead(self.state) + cost_line(self.forecast, self.cost), *words]
        text, said = ("… " if self.checking else "") + "\n".join(lines), self.query_one("#forecast", Static)
        if said.content != text:
            said.update(text)
        said.set_class(self.checking, "-old")

    def _show_path(self) -> None:
        note, path = self.query_one("#path-note", Static), self.state.job_path()
        problem = self.state.path_problem()
        if problem:
            note.update(f"✗ {problem}")
        elif self.state.wrote(path):
            launched = path.absolute() in self.state.written
            why = "written by the last launch, which came to nothing" if launched else "this very job stands there"
            note.update(f"✓ {why}; launching writes it again")
        elif path.exists():
            note.update(f"! launching asks before replacing what is there: {home_path(str(path))}")
        else:
            note.update(f"✓ a new file; the run goes to runs/{self.state.value('job.name')} beside it")
        note.set_class(bool(problem), "problem")
        self.query_one("#job-path", PathInput).placeholder = str(path)
        self.query_one("#file-text", Static).update(self._file_text())

    def _file_text(self) -> str:
        try:
            return dump_job(self.state.written_job())
        except JobError as e:
            return str(e)

    def _show_counts(self) -> None:
        text = counted(self.findings) or ("" if self.checking else "✓ ready to launch")
        far = self.look is not None and self.look.done < self.look.total
        checking = look_text(self.look) if self.look is not None and far else "checking"
        watching = f"cuts {self.look.done}/{self.look.total}" if self.look is not None and far else "cuts"
        self.query_one("#counts", Static).update(
            text + (f" … {checking}" if self.checking else f" … {watching}" if self.watching else "")
        )

    def show_progress(self) -> None:
        self._show_counts()

    def show_findings(self) -> None:
        self._show_counts()
        self._show_forecast()
        options = self.query_one("#findings", Choices)
        before = options.highlighted_option.id if options.highlighted_option is not None else None
        options.clear_options()
        if self.refusal:
            heading = Text("✗ NOT LAUNCHED · the draft is kept, ^G tries again", style="bold")
            options.add_option(
                Option(Group(heading, Padding(Text(escaped("\n".join(self.refusal))), (0, 0, 0, 2))), id="refusal")
            )
        for severity in SEVERITIES:
            group = [(i, f) for i, f in enumerate(self.findings) if f.severity == severity]
            if group:
                glyph, _, title, what = HEADINGS[severity]
                options.add_option(Option(Text(f"{glyph} {title} · {what}", style="bold"), disabled=True))
            for i, finding in group:
                options.add_option(Option(entry(finding), id=f"finding-{i}"))
        ids = [options.get_option_at_index(i).id for i in range(options.option_count)]
        real = [i for i, id in enumerate(ids) if id is not None]
        options.highlighted = ids.index(before) if before is not None and before in ids else real[0] if real else None

        for button in self.query("#fix, #fix-all"):
            button.display = self._can_fix
        self.refresh_bindings()

    # Keys

    @property
    def _can_fix(self) -> bool:
        return any(finding.set for finding in self.findings)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self._can_fix if action in ("fix", "fix_all") else super().check_action(action, parameters)

    def current(self) -> Finding | None:
        option = self.query_one("#findings", Choices).highlighted_option
        return (
            self.findings[int(option.id.removeprefix("finding-"))]
            if option is not None and option.id and option.id != "refusal"
            else None
        )

    @on(Button.Pressed, "#fix")
    def action_fix(self) -> None:
        finding = self.current()
        if finding is None:
            self.notify("There is nothing to fix.")
        elif not finding.set:
            self.notify(f"This one needs you: {finding.fix}", severity="warning")
        else:
            self._apply([finding])

    @on(Button.Pressed, "#fix-all")
    def action_fix_all(self) -> None:
        self._apply([f for f in self.findings if f.set])

    def _apply(self, findings: list[Finding]) -> None:
        self.notify("\n".join(self.state.apply(findings)), title="Fixed")
        self.post_message(Edited(scan=True))

    @on(Button.Pressed, "#show-file")
    def action_show_file(self) -> None:
        switcher = self.query_one(ContentSwitcher)
        switcher.current = "file" if switcher.current == "findings" else "findings"
        set_label(self.query_one("#show-file", Button), "Findings t" if switcher.current == "file" else "Job file t")
        self.query_one(f"#{switcher.current}").focus()

    @on(OptionList.OptionSelected, "#findings")
    def _jump(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        finding = self.current()
        if finding is not None:
            self.post_message(Jump(finding.field))

    @on(Input.Changed, "#job-path")
    def _path_typed(self, event: Input.Changed) -> None:
        event.stop()
        path = meant(event.value, self.state.cwd).strip()
        if path != self.state.draft.job_path:
            self.state.draft.job_path = path
            self.post_message(Edited())
