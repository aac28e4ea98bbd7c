"""Step 4: the machine, why values are recommended, and every panel of the job file as a form.

One field of it is wanlora_tui.widgets.field_input's.
"""

from copy import copy
from dataclasses import dataclass
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import Reactive
from textual.widget import Widget
from textual.widgets import Button, OptionList, Static
from textual.widgets.option_list import Option

from presets.base.composition import named_base
from presets.base.model_facts import read_model
from presets.errors import UserError
from presets.facts.loras import START_FIELDS, find_start, mergeable, shapes_of, start_of, startable
from presets.job.expert_schedule import EXPERTS, PANEL, Expert, needed_experts, steps_of, trained_experts
from presets.job.fields import parse_path
from presets.job.schema import Job, MergePanel
from presets.machine.machine import Machine
from presets.text import human
from wanlora_tui.actions import bindings
from wanlora_tui.draft.chosen_loras import merge_field, merge_fields
from wanlora_tui.draft.job_draft import PANELS, WizardState
from wanlora_tui.output.formatting import count, expert_text, home_path, value_text
from wanlora_tui.output.typed_paths import absolute
from wanlora_tui.screens.wizard.pane import Choices, Edited, StepPane
from wanlora_tui.widgets.field_input import CHANGED, RECOMMENDED, FieldInput
from wanlora_tui.widgets.folder_picker import PathInput, PathPicker

ROOMY = 90  # columns from which on a control keeps enough of them beside a long note


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


@dataclass
class LoraRead(Message):
    """The file that a field names was looked at: a LoRA to start from, or one to merge."""

    path: str
    value: str
    problem: str


def lora_problem(job: Job, path: str, merge: MergePanel | None, base: Path) -> str:
    """Why the LoRA of a start's field, or the `merge` of its field, cannot be used; "" when it can."""
    model = shapes_of(read_model(named_base(job), base))
    try:
        for expert, field in START_FIELDS.items():
            if path == field:
                startable(find_start(start_of(job, expert), expert, base), expert, model)
        if merge is not None:
            mergeable(merge, base, needed_experts(job), model)
    except UserError as e:
        return e.what
    return ""


class Form(VerticalScroll):
    """Rows, of which one grows by a line when what is typed there is no value."""

    # its own growth lays nothing out anew, but for the scrollbar, which does so itself
    virtual_size = Reactive(Size(0, 0), layout=False)


class SettingsPane(StepPane):
    BINDINGS = bindings("wizard.add", "wizard.browse", "wizard.remove")
    DEFAULT_CSS = """
    SettingsPane > Horizontal { height: 1fr; }
    SettingsPane #panels { width: 18; height: 1fr; border: none; padding: 0; }
    SettingsPane #form { width: 1fr; height: 1fr; padding-left: 1; }
    SettingsPane .heading { text-style: bold; height: auto; margin-top: 1; }
    SettingsPane #form .field-label { width: 24; }
    SettingsPane #form Static.fact { height: auto; }
    /* what has no room beside its control goes on in a second line */
    SettingsPane #form FieldInput > Horizontal { height: auto; }
    SettingsPane #form .field-note { max-width: 20; height: auto; text-wrap: wrap; }
    SettingsPane.-roomy #form FieldInput > Horizontal { height: 1; }
    SettingsPane.-roomy #form .field-note { max-width: 32; height: 1; text-wrap: nowrap; }
    SettingsPane.-roomy .field-note.-usual { min-width: 24; }
    SettingsPane.-roomy #form .field-label { width: 27; }
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
            yield Form(id="form", can_focus=False)

    def on_resize(self) -> None:
        """Controls end in one column also beside what `auto` comes to."""
        self.set_class(self.size.width >= ROOMY, "-roomy")

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
        """The field that led here; where its table is made, when there is none; else the list of panels."""
        rows = {row.path: row.control for row in self.rows()}
        if self.wanted in rows:
            rows[self.wanted].focus()
        elif self.wanted.startswith("model.merge"):
            rows[merge_fields(len(self.state.draft.merges))[-1]].focus()
        elif self.wanted.startswith("target.layers"):
            self.query_one("#add-layers").focus()
        else:
            self.query_one("#panels").focus()

    @property
    def panel(self) -> str:
        option = self.query_one("#panels", Choices).highlighted_option
        return option.id if option is not None and option.id else "machine"

    async def _show_panel(self) -> None:
        form, self.shown = self.query_one("#form", VerticalScroll), self.panel
        async with self.making():
            await form.remove_children()
            self.state.drop_blank_merges()
            form.scroll_home(animate=False)
            # nothing in it takes the focus, so the text itself must scroll by keys
            form.can_focus = self.shown == "machine"
            self.made_of = self.parts()  # before it is mounted: what comes meanwhile is not in it
            await form.mount_all(self._machine() if self.shown == "machine" else self._form(self.shown))
        self._look_at_loras()
        self.screen.refresh_bindings()

    @property
    def can_be_kept(self) -> bool:
        """With the panel that a new one begins with."""
        return self.shown == self.panel == "machine" and not self._making

    def parts(self) -> object:
        if self.shown != "machine" or self.state.machine is None:
            return None
        return machine_lines(self.state.machine), self.state.reasons()

    def fits(self, field: str) -> bool:
        return not field and super().fits(field)

    def come_back(self) -> None:
        """It shows the machine, of which `fits` has just compared all: reasons take a while to find."""
        self.wanted = ""
        self.query_one("#form", VerticalScroll).scroll_home(animate=False)
        self._list_panels()

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
                    else "All values are the plain defaults, or yours."
                ),
                classes="heading",
                markup=False,
            )
        )
        out += [
            Static(
                Content.assemble((f"{path} = {value_text(value) or 'empty'}", "bold"), f": {reason}"), classes="fact"
            )
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
            if path.endswith("].match"):
                out.append(Static("Some layers", classes="heading", markup=False))
            out.append(self.row(path))
        if panel == "target":
            out.append(Horizontal(Button("Add layers ^L", id="add-layers", compact=True), classes="row"))
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
        for expert in EXPERTS if self.shown == "multistage" else ():
            for heading in self.query(f"#heading-{expert}").results(Static):
                heading.update(self._expert_heading(expert))
        self._list_panels()
        if self.panel == "machine" and (self.shown != "machine" or self.made_of != self.parts()):
            self.call_next(self._show_panel)
        if self.shown == "model":  # a merge was named: it has fields of its own, and another may follow
            there = {row.path for row in self.query(FieldInput)}
            new = [self.row(path) for path in self.state.fields("model") if path not in there]
            self.query_one("#form", VerticalScroll).mount_all(new)
        self._look_at_loras()

    def _list_panels(self) -> None:
        panels = self.query_one("#panels", Choices)
        for i, panel in enumerate(("machine", *PANELS)):
            if panels.get_option_at_index(i).prompt != self._entry(panel):
                panels.replace_option_prompt_at_index(i, self._entry(panel))

    def _look_at_loras(self) -> None:
        """Say at its field what is wrong with a LoRA file."""
        if self.shown not in ("model", "target"):
            return
        for row in self.query(FieldInput):
            index, name = merge_field(row.path) or (None, "")
            if row.path not in START_FIELDS.values() and name != "path":
                continue
            if text := str(self.state.value(row.path)).strip():
                merge = copy(self.state.draft.merges[index]) if index is not None else None
                self._read_lora(self.state.job(), row.path, text, merge, self.base_folder())
            else:
                row.show_problem("")

    @work(thread=True, group="loras", exit_on_error=False)
    def _read_lora(self, job: Job, path: str, value: str, merge: MergePanel | None, base: Path) -> None:
        self.post_message(LoraRead(path, value, lora_problem(job, path, merge, base)))

    @on(LoraRead)
    def _lora_read(self, event: LoraRead) -> None:
        event.stop()
        for row in self.query(FieldInput):
            if row.path == event.path and str(self.state.value(row.path)).strip() == event.value:
                row.show_problem(event.problem)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Browse is offered where a path is wanted, add and remove where there are tables of layers."""
        if action == "browse":
            return self._path_row() is not None
        if action in ("add", "remove"):
            return self.shown == "target" and (action == "add" or bool(self.state.draft.layers))
        return super().check_action(action, parameters)

    def _path_row(self) -> FieldInput | None:
        row = self.focused_row()
        return row if row is not None and row.base is not None else None

    @work
    async def action_browse(self) -> None:
        row = self._path_row()
        if row is None:
            return
        here = str(row.value or "")
        start = absolute(here, self.base_folder()) if here else self.base_folder()
        title = row.field.label
        suffixes = None if row.path == "model.path" else row.suffixes  # a base is a folder more often than a file
        picked = await self.app.push_screen_wait(PathPicker(start, title=title, suffixes=suffixes))
        if picked is not None and row.is_mounted:
            assert isinstance(row.control, PathInput)
            row.control.value = picked
            row.control.focus()

    @on(Button.Pressed, "#add-layers")
    async def action_add(self) -> None:
        self.state.add_layers()
        await self._show_panel()
        first = self.state.layers_fields(len(self.state.draft.layers) - 1)[0]
        next(row for row in self.query(FieldInput) if row.path == first).control.focus()
        self.post_message(Edited())

    async def action_remove(self) -> None:
        """The table that has the focus, else the last."""
        if not self.state.draft.layers:
            return
        focused = [parse_path(row.path) for row in self.query(FieldInput) if row.has_focus_within]
        index = focused[0][2] if focused and focused[0][1] == "layers" else len(self.state.draft.layers) - 1
        assert isinstance(index, int)
        self.state.remove_layers(index)
        await self._show_panel()
        self.query_one("#add-layers").focus()
        self.post_message(Edited())

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
