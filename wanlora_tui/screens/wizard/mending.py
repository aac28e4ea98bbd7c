"""What the steps with clips share: leaving a clip out, writing captions, taking them back, reading a folder again."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from textual import work
from textual.message import Message

from presets.clips.clip_facts import DatasetFacts
from presets.errors import UserError
from presets.job.schema import DatasetPanel
from presets.text import escaped
from wanlora_tui.draft.caption_history import CaptionChange
from wanlora_tui.draft.clip_captions import file_of, filled, text_to_mend, with_changes, with_trigger
from wanlora_tui.draft.clip_list import ClipEntry, ClipLists, Listed, toggle
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.output.formatting import count, home_path, shorten
from wanlora_tui.screens.wizard.clip_dialogs import CaptionDialog, CaptionsDialog, TakingBack
from wanlora_tui.screens.wizard.pane import Edited, StepPane


class ReadAgain(Message):
    """What lies in a folder has changed, or reading it was stopped before: read it."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder


class ClipsChosen(Message):
    """Other clips train now: what is recommended for them follows."""


class MendingPane(StepPane):
    """A step with a table of clips."""

    def __init__(self, state: WizardState, lists: ClipLists) -> None:
        """`lists` are the wizard's: thousands of clips are listed once, not each time that a step is entered."""
        super().__init__(state)
        self.lists = lists

    def current(self) -> ClipEntry | None:
        """The clip under the cursor of the step's table."""
        raise NotImplementedError

    def listed(self) -> list[Listed | None]:
        """The folders, None for one that is being read."""
        return [self.lists.listed(i) for i in range(len(self.state.draft.folders))]

    # Leaving out

    def action_leave_out(self) -> None:
        entry = self.current()
        if entry is None:
            self.notify("There is no clip under the cursor.", severity="warning")
            return
        toggle(self.state, entry)
        self.post_message(ClipsChosen())
        self.post_message(Edited())

    # Captions

    @work
    async def edit_caption(self, entry: ClipEntry) -> None:
        listed = self.lists.listed(entry.dataset)
        if listed is None:
            return
        ready = self.state.ready
        panel = self.state.job().datasets[entry.dataset] if ready else None
        file = file_of(entry, listed.found, self._panel(entry.dataset))
        text, note = text_to_mend(entry)

        def write(after: str) -> str:
            change = CaptionChange(entry.path, entry.name, file, text, after)
            return "" if after == text and not entry.caption_problem else self._write([change])

        trigger = self.state.job().job.trigger if ready else ""
        await self.app.push_screen_wait(
            CaptionDialog(entry, panel, trigger, text, file=home_path(str(file)), note=note, write=write)
        )

    def action_add_trigger(self) -> None:
        job = self.state.job()
        self._many(
            "Add the trigger word",
            "These captions name neither the trigger word nor [trigger]. They would begin with it:",
            lambda _, training, found, panel: with_trigger(training, found, panel, job.job.trigger),
            none="Every caption names the trigger word or [trigger] already.",
        )

    def action_fill_captions(self) -> None:
        job = self.state.job()
        usual = next((d.default_caption for d in job.datasets if d.default_caption), "")
        self._many(
            "Fill captions",
            "What each clip without a caption of its own gets; {name} is its file's name in words:",
            lambda template, training, found, panel: filled(training, found, panel, template),
            template=usual or ("[trigger], {name}" if job.job.trigger else "{name}"),
            none="Every clip has a caption of its own.",
        )

    @work
    async def _many(
        self,
        title: str,
        words: str,
        of_folder: Callable[[str, list[ClipEntry], DatasetFacts, DatasetPanel], list[CaptionChange]],
        *,
        none: str,
        template: str | None = None,
    ) -> None:
        # of every folder that is no regularization: those show what the trigger is not
        folders = [
            (listed, panel)
            for listed, panel in zip(self.listed(), self.state.job().datasets, strict=True)
            if listed is not None and not panel.regularization
        ]

        def plan(template: str) -> list[CaptionChange]:
            return [
                change
                for listed, panel in folders
                for change in of_folder(template, _training(listed), listed.found, panel)
            ]

        writing = partial(self.state.captions.writing, title=title)
        changes = await self.app.push_screen_wait(
            CaptionsDialog(title, words, plan=plan, none=none, write=writing, template=template)
        )
        if changes:
            self._took(changes)
            self.notify(f"{count(len(changes), 'caption')} written. z takes them back.", title=title)

    @work
    async def action_take_back(self) -> None:
        captions = self.state.captions
        if not len(captions):
            self.notify("No caption has been written here.", severity="warning")
            return
        title, number = captions.newest
        back = await self.app.push_screen_wait(TakingBack(f"Take back: {title}", number, captions.taking_back()))
        if isinstance(back, UserError):
            self.notify(str(back), severity="error", timeout=15)
        elif back is None:
            self.notify("Stopped: the captions are as they were written.", title=title)
        else:
            self._took(back)
            self.notify(_words_of(back, number), title=f"Taken back: {title}")

    def _panel(self, index: int) -> DatasetPanel:
        if self.state.ready:
            return self.state.job().datasets[index]
        extension = self.state.draft.values.get(f"datasets[{index}].caption_extension", "")
        return DatasetPanel(path=self.state.draft.folders[index], caption_extension=extension)

    def _write(self, changes: list[CaptionChange]) -> str:
        """What is wrong; "" once they are written."""
        try:
            self.state.captions.write(changes, "a caption")
        except UserError as e:
            return str(e)
        self._took(changes)
        return ""

    def _took(self, changes: list[CaptionChange]) -> None:
        """Captions have changed on the disk: show it at once, and read the folders again behind it."""
        for folder, found in list(self.state.scans.items()):
            own = [c for c in changes if Path(c.clip).is_relative_to(found.path)]
            if own:
                self.state.scans[folder] = with_changes(found, own)
                self.post_message(ReadAgain(folder))
        self.post_message(Edited())

    # Reading

    def action_read_again(self) -> None:
        for folder in self.state.draft.folders:
            self.post_message(ReadAgain(folder))

    def action_stop_looking(self) -> None:
        for folder, look in list(self.state.looks.items()):
            look.end()
            if folder not in self.state.scans:
                self.state.unread[folder] = ""
        self.post_message(Edited())

    @property
    def reading(self) -> bool:
        return any(not look.ended for look in self.state.looks.values())

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop_looking":
            return self.reading
        if action == "leave_out":
            return self.current() is not None
        if action == "read_again":
            return bool(self.state.draft.folders)
        if action in ("add_trigger", "fill_captions"):
            found = [self.state.found(i) for i in range(len(self.state.draft.folders))]
            return self.state.ready and any(f is not None and f.clips for f in found)
        if action == "take_back":
            return len(self.state.captions) > 0
        return super().check_action(action, parameters)


def _words_of(back: list[CaptionChange], number: int) -> str:
    """What was taken back, of so many that were written."""
    if not back:
        return f"Nothing: {count(number, 'file')} changed by somebody else since, which stays so."
    reads = f": {shorten(escaped(back[0].after), 60)}" if back[0].after else " has none again"
    kept = f" {number - len(back)} changed by somebody else since, which stays so." if len(back) < number else ""
    if len(back) == 1:
        return f"{escaped(back[0].name)}{reads}.{kept}"
    return f"{count(len(back), 'caption')}, of {escaped(back[0].name)} to {escaped(back[-1].name)}.{kept}"


def _training(listed: Listed) -> list[ClipEntry]:
    return [entry for entry in listed.entries if entry.name not in listed.left_out]
