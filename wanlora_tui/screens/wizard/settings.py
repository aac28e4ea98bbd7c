"""Step 4: the machine, why values are recommended, and every panel of the job file as a form.

One field of it is wanlora_tui.widgets.field_input's.
"""

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from presets.job.expert_schedule import EXPERTS, PANEL, Expert, steps_of, trained_experts
from presets.machine.machine import Machine
from presets.text import human
from wanlora_tui.draft.job_draft import PANELS, WizardState
from wanlora_tui.output.formatting import count, expert_text, home_path, value_text
from wanlora_tui.screens.wizard.pane import Choices, StepPane
from wanlora_tui.widgets.field_input import CHANGED, RECOMMENDED, FieldInput


def machine_lines(machine: Machine) -> list[str]:
    """What was found, one fact per line."""
    lines = []
    for gpu in machine.gpus:
        if gpu.error:
            lines.append(f"✗ GPU {gpu.index}: {gpu.error}")
            continue
        lines.append(
            f"GPU {gpu.index}  {gpu.name}{' (MIG)' if gpu.mig else ''}: {human(gpu.vram_total)}, {human(gpu.vram_free)}"
            f" free, driver {gpu.driver}"
        )
    if not machine.gpus:
        lines.append(f"✗ No GPU{': ' + machine.gpu_problem if machine.gpu_problem else ''}")
    lines.append(f"RAM    {human(machine.ram_total)}, {human(machine.ram_free)} free · {count(machine.cores, 'core')}")
    lines.append(f"Disk   {human(machine.disk_free)} free in {home_path(str(machine.disk_path))}")
    return lines


class SettingsPane(StepPane):
    DEFAULT_CSS = """
    SettingsPane > Horizontal { height: 1fr; }
    SettingsPane #panels { width: 18; height: 1fr; border: none; padding: 0; }
    SettingsPane #form { width: 1fr; height: 1fr; padding-left: 1; }
    SettingsPane .heading { text-style: bold; height: auto; margin-top: 1; }
    SettingsPane .field-label { width: 24; }
    SettingsPane #form Static.fact { height: auto; }
    """

    def __init__(self, state: WizardState, *, field: str = "") -> None:
        super().__init__(state)
        self.wanted = field  # the field to show first, when a finding led here
        self.shown = ""  # the panel whose form stands there

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Choices(
                *(Option(self._entry(p), id=p) for p in ("machine", *PANELS)), id="panels", compact=True, markup=False
            )
            yield VerticalScroll(id="form", can_focus=False)

    def _entry(self, panel: str) -> str:
        changed = self.state.changed(panel)
        return panel.upper() + (f" {CHANGED}{changed}" if changed else "")

    async def on_mount(self) -> None:
        panels = self.query_one("#panels", Choices)
        panel = self.wanted.split(".")[0].split("[")[0] if self.wanted else "machine"
        with self.prevent(OptionList.OptionHighlighted):
            panels.highlighted = panels.get_option_index(panel if panel in PANELS else "machine")
        await self._show_panel()

    def focus_first(self) -> None:
        wanted = [row for row in self.query(FieldInput) if row.path == self.wanted]
        if wanted:
            wanted[0].control.focus()
        else:
            self.query_one("#panels").focus()

    @property
    def panel(self) -> str:
        option = self.query_one("#panels", Choices).highlighted_option
        return option.id if option is not None and option.id else "machine"

    async def _show_panel(self) -> None:
        form, self.shown = self.query_one("#form", VerticalScroll), self.panel
        await form.remove_children()
        form.scroll_home(animate=False)
        # nothing in it takes the focus, so the text itself must scroll by keys
        form.can_focus = self.panel == "machine"
        await form.mount_all(self._machine() if self.panel == "machine" else self._form(self.panel))

    def _machine(self) -> list[Widget]:
        assert self.state.machine is not None
        out: list[Widget] = [
            Static(line, classes="fact" + (" problem" if line.startswith("✗") else ""), markup=False)
            for line in machine_lines(self.state.machine)
        ]
        reasons = self.state.reasons()
        out.append(
            Static(
                (
                    f"{RECOMMENDED} {count(len(reasons), 'value')} chosen for this job"
                    if reasons
                    else "All values are the plain defaults."
                ),
                classes="heading",
                markup=False,
            )
        )
        out += [
            Static(f"{path} = {value_text(value) or 'empty'}: {reason}", classes="fact", markup=False)
            for path, value, reason in reasons
        ]
        return out

    def _form(self, panel: str) -> list[Widget]:
        out: list[Widget] = []
        folders = self.state.draft.folders
        for path in self.state.fields(panel):
            if path.endswith("].path") and len(folders) > 1:
                index = int(path.partition("[")[2].partition("]")[0])
                out.append(Static(f"Dataset {index + 1} of {len(folders)}", classes="heading", markup=False))
            expert = next((e for e, name in PANEL.items() if path == f"multistage.{name}.lr"), None)
            if expert is not None:
                out.append(
                    Static(self._expert_heading(expert), id=f"heading-{expert}", classes="heading", markup=False)
                )
            out.append(self.row(path))
        if panel == "sample":
            out.append(Static("Prompts and their control images: next step.", classes="muted"))
        if panel == "datasets":
            out.append(Static("Add and remove datasets in step 2, Clips.", classes="muted"))
        return out

    def _expert_heading(self, expert: Expert) -> str:
        job = self.state.job()
        name = expert_text(expert)[0].upper() + expert_text(expert)[1:]
        if expert not in trained_experts(job):
            return f"{name} alone: not trained, so these values are not used"
        return f"{name} alone: {steps_of(job)[expert]} of {count(job.training.steps, 'step')}"

    def bring_up_to_date(self) -> None:
        super().bring_up_to_date()
        for expert in EXPERTS:
            for heading in self.query(f"#heading-{expert}").results(Static):
                heading.update(self._expert_heading(expert))
        panels = self.query_one("#panels", Choices)
        for i, panel in enumerate(("machine", *PANELS)):
            if panels.get_option_at_index(i).prompt != self._entry(panel):
                panels.replace_option_prompt_at_index(i, self._entry(panel))
        if self.panel == "machine":
            self.call_next(self._show_panel)

    @on(OptionList.OptionHighlighted, "#panels")
    async def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        if self.panel != self.shown:
            await self._show_panel()

    @on(OptionList.OptionSelected, "#panels")
    def _into_form(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        rows = self.query(FieldInput)
        if rows:
            rows.first().control.focus()
