"""The draft on disk while it is worked at: kept after every change, and gone once it is thrown away or has become a
job. What can be taken back of it is wanlora_tui.screens.frame.undoing's."""

from wanlora_tui.draft.draft_store import DraftError, Drafts, DraftStore
from wanlora_tui.screens.frame.undoing import UndoingScreen


class KeepingScreen(UndoingScreen):
    """A screen over a WizardState whose draft is kept among `drafts`."""

    drafts: Drafts

    def __init__(self) -> None:
        super().__init__()
        self.store: DraftStore | None = None  # its own, from its first change on
        self._draft_problem = ""

    def on_unmount(self) -> None:
        if self.store is not None:
            self.store.release()

    def keep(self) -> None:
        """Save the draft. A failure is shown, and typing continues."""
        self.note_change()
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

    def forget(self) -> None:
        """Delete the draft: it was thrown away, or has become a job."""
        if self.store is not None:
            try:
                self.store.delete()
            except DraftError as e:
                self.notify(str(e), severity="error", timeout=20)
