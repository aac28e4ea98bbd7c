"""Taking back what was changed in the draft, and making it again; each time it is said what."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from textual.screen import Screen

from presets.errors import UserError
from wanlora_tui.draft.draft_store import Draft
from wanlora_tui.draft.history import History, changed, in_words
from wanlora_tui.draft.job_draft import WizardState

SAID = 0.05  # seconds after which it is said what: a notice lays out the screen once more, behind what it tells of


class UndoingScreen(Screen[Any]):
    """A screen over a WizardState whose changes are all noted in `history`."""

    state: WizardState
    history: History

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()  # by its notices

    def in_place(self, paths: list[str]) -> bool:
        """The step in view can show these changes as it stands: it need not be made anew, nor what is recommended be
        there at once."""
        raise NotImplementedError

    async def went_to(self, paths: list[str]) -> None:
        """Show a draft that is another one by now; `paths` are what is different."""
        raise NotImplementedError

    def note_change(self) -> None:
        """Take in what the draft has become."""
        offered = self.history.can_undo, self.history.can_redo
        self.history.note(self.state.draft)
        if offered != (self.history.can_undo, self.history.can_redo):
            self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("undo", "redo"):
            return self.history.can_undo if action == "undo" else self.history.can_redo
        return super().check_action(action, parameters)

    async def action_undo(self) -> None:
        await self._go(self.history.undo, "undone")

    async def action_redo(self) -> None:
        await self._go(self.history.redo, "made again")

    async def _go(self, turn: Callable[[Draft], Draft | None], word: str) -> None:
        before = self.state.draft
        after = turn(before)
        if after is None:  # a change of the same moment has left nothing
            return
        self.refresh_bindings()
        paths = list(changed(before, after))
        values = {id(before): self._values(paths)}
        self.state.draft = after
        if not self.in_place(paths):
            self.state.refresh()
        values[id(after)] = self._values(paths)
        await self.went_to(paths)
        said = f"{word}: {in_words(before, after, lambda draft, path: values[id(draft)].get(path))}"
        self.set_timer(SAID, partial(self.say, said))

    def say(self, text: str) -> None:
        """In place of what the keys before it said: a key held down would fill the screen with notices."""
        self._told.add(text)
        self.notify(text)
        self.app.call_later(self._keep_the_last)  # behind the notice, which is on its way

    def _keep_the_last(self) -> None:
        told = [notice for notice in self.app._notifications if notice.message in self._told]
        for earlier in told[:-1]:
            self.app._unnotify(earlier)

    def _values(self, paths: list[str]) -> dict[str, Any]:
        """What the fields of these paths hold now; those that there are."""
        values = {}
        for path in paths:
            with suppress(UserError, LookupError, AssertionError):
                values[path] = self.state.draft.kind if path == "job.kind" else self.state.value(path)
        return values
