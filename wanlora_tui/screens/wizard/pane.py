"""What the steps of the wizard have in common."""

from pathlib import Path

from textual.containers import Vertical
from textual.message import Message
from textual.widgets import OptionList

from presets.clips.clip_facts import IMAGE_SUFFIXES
from presets.look import Look
from wanlora_tui.actions import bindings
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.widgets.field_input import FieldInput

LORA_SUFFIXES = frozenset({".safetensors"})


def look_text(look: Look) -> str:
    """`looking at clips 120/5000`, or how many files were found while they are listed."""
    return (
        f"looking at clips {look.done}/{look.total}"
        if look.total
        else f"listing files ({look.done})"
        if look.done
        else "looking at the clips"
    )


class Edited(Message):
    """The draft has changed: keep it, and bring what is shown up to date. `scan`: folders have to be read."""

    def __init__(self, *, scan: bool = False) -> None:
        super().__init__()
        self.scan = scan


class Choices(OptionList):
    """An OptionList with the keys of vim lists."""

    BINDINGS = bindings("list.down", "list.up", "list.top", "list.bottom")


class StepPane(Vertical):
    """One step: made anew each time it is entered, from the state alone."""

    BINDINGS = bindings("wizard.recommended")
    DEFAULT_CSS = """
    StepPane { padding: 0 1; }
    StepPane .problem { color: $text-error; height: auto; }
    StepPane .muted { color: $text-muted; height: auto; }
    StepPane .row { height: 1; }
    StepPane Button { margin-left: 1; min-width: 0; }
    StepPane OptionList, StepPane OptionList:focus { border: none; padding: 0; background: transparent; }
    StepPane DataTable { height: 1fr; min-height: 4; }
    """

    def __init__(self, state: WizardState) -> None:
        super().__init__()
        self.state = state
        self.look: Look | None = None  # at clips, when the step has one of its own under way

    def bring_up_to_date(self) -> None:
        """Show the state again after facts or fields have changed elsewhere; what is being typed stays."""
        for row in self.query(FieldInput):
            recommended, reason = self.state.recommended(row.path)
            row.set_value(self.state.value(row.path), recommended=recommended, reason=reason)
            row.set_placeholder(self.state.placeholder(row.path))

    def show_progress(self) -> None:
        """Say how far the looks at clips are; called a few times a second while there are any."""

    def row(self, path: str) -> FieldInput:
        """The form row of a field."""
        state = self.state
        recommended, reason = state.recommended(path)
        is_image, is_weights = (
            path.endswith(".ctrl_img"),
            path
            in ("quantization.ara", "sample.accelerator", "sample.accelerator_low", "model.vae", "model.text_encoder"),
        )
        is_path = (
            is_image or (path.startswith("datasets[") and path.endswith(".path")) or is_weights or path == "model.path"
        )
        return FieldInput(
            path,
            state.value(path),
            recommended=recommended,
            reason=reason,
            typed=state.draft.typed.get(path),
            base=self.base_folder() if is_path else None,
            suffixes=IMAGE_SUFFIXES if is_image else LORA_SUFFIXES if is_weights else None,
            placeholder=state.placeholder(path),
        )

    def base_folder(self) -> Path:
        return self.state.job_path().parent

    def focus_first(self) -> None:
        """Put the focus where this step begins."""
        raise AssertionError("every step says where it begins")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """F6 is only offered where there is a recommended value to go back to."""
        if action == "recommended":
            return any(row.has_focus_within and row.reason is not None for row in self.query(FieldInput))
        return super().check_action(action, parameters)

    def action_recommended(self) -> None:
        for row in self.query(FieldInput):
            if row.has_focus_within:
                row.reset()
