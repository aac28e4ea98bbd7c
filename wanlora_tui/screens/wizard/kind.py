"""Step 1: what the LoRA teaches."""

from typing import get_args

from rich.console import Group
from rich.padding import Padding
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from presets.job.schema import Kind
from presets.recipes.recipe import Recipe, load_recipe
from wanlora_tui.screens.wizard.pane import Choices, Edited, StepPane

KINDS: tuple[Kind, ...] = get_args(Kind)
TEACHES: dict[Kind, str] = {
    "motion": "how things or the camera move: an orbit, a gesture",
    "style": "how the picture looks: film grain, colours, a painted look",
    "character": "who is in the picture: one face, the same in every scene",
}


class Chosen(Edited):
    """A kind was taken: to the next step."""


class KindPane(StepPane):
    DEFAULT_CSS = "KindPane Choices { height: 1fr; }"

    def compose(self) -> ComposeResult:
        yield Choices(
            *(Option(self._card(kind, load_recipe(kind)), id=kind) for kind in KINDS), id="kinds", markup=False
        )

    def _card(self, kind: Kind, recipe: Recipe) -> Group:
        chosen = kind == self.state.draft.kind
        below = 1 if self.app.size.height >= 30 else 0
        return Group(
            Text(f"{'●' if chosen else '○'} {recipe.title}{' (chosen)' if chosen else ''}", style="bold"),
            Padding(Text(f"Teaches {TEACHES[kind]}."), (0, 0, 0, 2)),
            Padding(Text(f"Wants {recipe.about}"), (0, 0, 0, 2)),
            Padding(Text.assemble("Caption such as ", (recipe.caption, "italic")), (0, 0, below, 2)),
        )

    can_be_kept = True

    def parts(self) -> object:
        return self.state.draft.kind

    def come_back(self) -> None:
        super().come_back()
        self._highlight()

    def on_mount(self) -> None:
        self.made_of = self.parts()
        self._highlight()

    def _highlight(self) -> None:
        kinds = self.query_one(Choices)
        kinds.highlighted = KINDS.index(self.state.draft.kind) if self.state.draft.kind else 0

    def focus_first(self) -> None:
        self.query_one(Choices).focus()

    @on(OptionList.OptionSelected)
    def _take(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.state.set_kind(KINDS[event.option_index])
        self.post_message(Chosen())
