"""Step 5: prompts for the previews, each with the image it starts from."""

from dataclasses import dataclass
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Button, Static

from presets.clips.captions import fill_trigger
from presets.clips.clip_facts import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from presets.rules.preview_rules import image_problem
from wanlora_tui.actions import bindings
from wanlora_tui.draft.clip_previews import add_clip_prompts, clip_of, hold_out, is_held_out
from wanlora_tui.output.formatting import count
from wanlora_tui.output.typed_paths import absolute, at
from wanlora_tui.screens.wizard.pane import Edited, StepPane
from wanlora_tui.widgets.field_input import FieldInput
from wanlora_tui.widgets.folder_picker import PathPicker

NONE = (
    "No prompts: this job makes no previews, only checkpoints. ^F adds two that start from first frames of your clips;"
    " ^L adds an empty one."
)


@dataclass
class ImageRead(Message):
    """A control image was opened, or could not be."""

    path: str
    problem: str


class PromptRow(Vertical):
    """One prompt, its image, and what is known about the image."""

    def __init__(self, index: int, pane: "PromptsPane") -> None:
        super().__init__(id=f"prompt-{index}")
        self.index, self.pane = index, pane

    def compose(self) -> ComposeResult:
        with Horizontal(classes="row"):
            yield Static(f"Prompt {self.index + 1}", classes="heading")
            yield Button("Image ^O", classes="browse", compact=True)
            yield Button("Hold out ^\\", classes="hold-out", compact=True)
            yield Button("Remove ^X", classes="remove", compact=True)
            yield Button("Own values", classes="more", compact=True)
        text, image, *own = self.pane.state.prompt_fields(self.index)
        yield self.pane.row(text)
        yield self.pane.row(image)
        yield Static("", classes="image-state", markup=False)
        with Vertical(classes="own"):
            yield from map(self.pane.row, own)

    def on_mount(self) -> None:
        self.fold()

    def fold(self) -> None:
        """Values of its own are seen where there are any."""
        state = self.pane.state
        own = state.prompt_fields(self.index)[2:]
        self.set_class(
            any(path in state.draft.typed or state.value(path) != state.recommended(path)[0] for path in own), "-open"
        )

    def unfold(self, row: FieldInput) -> None:
        """Bring a field of this prompt into view."""
        if row in self.query_one(".own").query(FieldInput):
            self.add_class("-open")

    @on(Button.Pressed, ".more")
    def _toggle(self, event: Button.Pressed) -> None:
        event.stop()
        self.toggle_class("-open")
        if self.has_class("-open"):
            self.query_one(".own").query(FieldInput).first().control.focus()


class PromptsPane(StepPane):
    BINDINGS = bindings("wizard.from_clips", "wizard.add", "wizard.browse", "wizard.hold_out", "wizard.remove")
    DEFAULT_CSS = """
    PromptsPane #prompt-state { height: auto; }
    PromptsPane #prompts { height: 1fr; margin-top: 1; }
    PromptsPane PromptRow { height: auto; margin-bottom: 1; }
    PromptsPane PromptRow .heading { width: 26; text-style: bold; }
    PromptsPane PromptRow .own { height: auto; display: none; }
    PromptsPane PromptRow.-open .own { display: block; }
    PromptsPane .field-label { padding-left: 2; }
    PromptsPane .field-control { max-width: 100; }
    PromptsPane .image-state { height: auto; padding-left: 26; }
    """

    def compose(self) -> ComposeResult:
        yield Static("", id="prompt-state", markup=False)
        yield VerticalScroll(id="prompts", can_focus=False)
        with Horizontal(classes="row"):
            yield Button("From clips ^F", id="from-clips", compact=True)
            yield Button("Add a prompt ^L", id="add", compact=True)
        yield self.row("sample.preset")

    @property
    def can_be_kept(self) -> bool:
        return not self._making

    def parts(self) -> object:
        return [self.state.prompt_fields(i) for i in range(len(self.state.draft.prompts))]

    def come_back(self) -> None:
        self.query_one("#prompts", VerticalScroll).scroll_home(animate=False)
        for row in self.query(PromptRow):
            row.fold()
        super().come_back()

    async def on_mount(self) -> None:
        await self._show_rows()

    def focus_first(self) -> None:
        rows = self.query(PromptRow)
        if rows:
            rows.first().query(FieldInput).first().control.focus()
        else:
            self.query_one("#from-clips").focus()

    async def _show_rows(self) -> None:
        box = self.query_one("#prompts", VerticalScroll)
        async with self.making():
            await box.remove_children()
            self.made_of = self.parts()
            await box.mount_all(PromptRow(i, self) for i in range(len(self.state.draft.prompts)))
        self.bring_up_to_date()

    def bring_up_to_date(self) -> None:
        super().bring_up_to_date()
        prompts, job = self.state.draft.prompts, self.state.job()
        if prompts:
            example = fill_trigger(prompts[0].prompt, job.job.trigger)
            text = f"{count(len(prompts), 'prompt')}, previews every {job.sample.every} steps." + (
                f" The first reads: {example}" if example != prompts[0].prompt else ""
            )
        else:
            text = NONE
        self.query_one("#prompt-state", Static).update(text)
        for i, prompt in enumerate(prompts):
            if prompt.ctrl_img:
                self._read_image(prompt.ctrl_img, self.base_folder())
            else:
                self._say(i, "✗ needs an image: pick one with ^O", wrong=True)

    @work(thread=True, group="images", exit_on_error=False)
    def _read_image(self, path: str, base: Path) -> None:
        self.post_message(ImageRead(path, image_problem(at(path, base))))

    @on(ImageRead)
    def _image_read(self, event: ImageRead) -> None:
        for i, prompt in enumerate(self.state.draft.prompts):
            if prompt.ctrl_img == event.path:
                self._say(i, f"✗ {event.problem}" if event.problem else self._of_image(i), wrong=bool(event.problem))

    def _of_image(self, index: int) -> str:
        if clip_of(self.state, index) is None:
            is_video = Path(self.state.draft.prompts[index].ctrl_img).suffix.lower() in VIDEO_SUFFIXES
            return "✓ its first frame opens" if is_video else "✓ the image opens"
        if is_held_out(self.state, index):
            return "✓ a clip that does not train: ^\\ takes it in again"
        return "✓ a clip that trains as well: ^\\ leaves it out of training"

    def _say(self, index: int, text: str, *, wrong: bool) -> None:
        for row in self.query(f"#prompt-{index}"):
            label = row.query_one(".image-state", Static)
            label.update(text)
            label.set_class(wrong, "problem")

    def _index(self) -> int | None:
        """The prompt that has the focus, else the last one; None when there is none."""
        focused = [row.index for row in self.query(PromptRow) if row.has_focus_within]
        return focused[0] if focused else len(self.state.draft.prompts) - 1 if self.state.draft.prompts else None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("browse", "hold_out", "remove"):
            return bool(self.state.draft.prompts)
        return super().check_action(action, parameters)

    @on(Button.Pressed, "#add")
    async def action_add(self) -> None:
        self.state.add_prompt()
        await self._show_rows()
        self.query_one(f"#prompt-{len(self.state.draft.prompts) - 1}").query(FieldInput).first().control.focus()
        self.post_message(Edited())

    @on(Button.Pressed, "#from-clips")
    async def action_from_clips(self) -> None:
        first = len(self.state.draft.prompts)
        if not add_clip_prompts(self.state):
            self.notify(
                "No more clips to start from: those with a caption are used up, or still being read.",
                severity="warning",
            )
            return
        await self._show_rows()
        self.query_one(f"#prompt-{first}").query(FieldInput).first().control.focus()
        self.post_message(Edited())

    @on(Button.Pressed, ".hold-out")
    def action_hold_out(self) -> None:
        index = self._index()
        if index is not None and hold_out(self.state, index):
            self.post_message(Edited())
        else:
            self.notify("This preview starts from no clip of the job's folders.", severity="warning")

    @on(Button.Pressed, ".remove")
    async def action_remove(self) -> None:
        index = self._index()
        if index is not None:
            self.state.remove_prompt(index)
            await self._show_rows()
            self.focus_first()
            self.post_message(Edited())

    @on(Button.Pressed, ".browse")
    def action_browse(self) -> None:
        index = self._index()
        if index is not None:
            self._browse(index)

    @work
    async def _browse(self, index: int) -> None:
        """For the end image where its field has the focus, else for the control image."""
        row = self.query_one(f"#prompt-{index}", PromptRow)
        end = any(f.has_focus_within for f in row.query(FieldInput) if f.path.endswith(".end_img"))
        prompt = self.state.draft.prompts[index]
        here = (prompt.end_img if end else "") or prompt.ctrl_img
        start = absolute(here, self.base_folder()) if here else Path(self.state.draft.folders[0])
        title = f"{'End' if end else 'Control'} image of prompt {index + 1}"
        picked = await self.app.push_screen_wait(
            PathPicker(start, title=title, suffixes=IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        )
        if picked is not None:
            # the prompt, its image, then the one it ends at
            control = row.query(FieldInput)[2 if end else 1].control
            control.value = picked
            control.focus()
