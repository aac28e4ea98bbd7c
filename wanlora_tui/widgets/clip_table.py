"""Tables of clips: what was found in a folder, and how its captions will read.

What is wrong with clips is shown by the wizard's step (wanlora_tui.screens.wizard.clips).
"""

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from presets.clips.batches import frames_of, window_starts
from presets.clips.captions import fill_trigger
from presets.clips.clip_facts import ClipFacts
from presets.clips.geometry import uniform_speed
from presets.job.schema import DatasetPanel
from presets.text import escaped
from wanlora_tui.draft.clip_list import ClipEntry
from wanlora_tui.output.formatting import shorten
from wanlora_tui.widgets.long_table import Column, LongTable

if TYPE_CHECKING:
    from presets.clips.likeness.alike import Twin

MASKS = {"image": "still", "video": "video"}  # what masks the loss of a clip
NAME = 24  # cells of a clip's name at most
NARROW = 90  # cells of a table, below which the caption needs the room of what else is known
TIGHT = 74  # and of what is said of the clip under the cursor anyway
OUT, WRONG, HELD, TWIN = "⊘", "✗", "○", "≈"


def speed_of(clip: ClipFacts, panel: DatasetPanel) -> float:
    """How much faster than life the clip trains with this dataset's frames and sampling."""
    if panel.sampling != "uniform" or clip.kind == "image":
        return 1.0
    return uniform_speed(clip.duration, frames_of(clip, panel))


def speed_text(speed: float) -> str:
    """`2.4x fast`, `0.8x slow`, `1.0x`."""
    return f"{speed:.1f}x" + (" fast" if speed >= 1.05 else " slow" if speed < 0.95 else "")


def frames_text(clip: ClipFacts, panel: DatasetPanel | None) -> str:
    """The frames that a clip trains on, of those it has: `41 of 120`, `3x 41 of 300` of three windows."""
    if panel is None:
        return str(clip.frames)
    windows, used = len(window_starts(clip, panel)), frames_of(clip, panel)
    text = f"{windows}x {used}" if windows > 1 else str(used)
    return text if text == str(clip.frames) else f"{text} of {clip.frames}"


def name_column(entries: Sequence[ClipEntry]) -> Column:
    """As wide as the longest name: the captions beside it take the rest."""
    widest = len("Clip")
    for entry in entries:
        widest = max(widest, min(NAME, cell_len(escaped(entry.name))))
        if widest == NAME:  # of thousands, not all need to be looked at
            break
    return Column("Clip", widest)


class ClipTable(LongTable):
    """One row per clip of a dataset, and per file that no clip can be made of."""

    entries: Sequence[ClipEntry] = ()
    panel: DatasetPanel | None = None
    left_out: frozenset[str] = frozenset()
    twins: Mapping[str, "Twin"] = {}
    held: Set[str] = frozenset()  # paths of the clips that measure the loss and do not train
    masks = narrow = tight = False

    def show(
        self,
        entries: Sequence[ClipEntry],
        panel: DatasetPanel | None,
        left_out: frozenset[str],
        twins: Mapping[str, "Twin"],
        *,
        masks: bool,
    ) -> None:
        """Show these, also those that are left out; without a panel (no job yet) the speed stays open. `twins`: path of
        a clip -> which others it is like."""
        same = entries is self.entries and masks == self.masks
        self.entries, self.panel, self.left_out, self.twins = entries, panel, left_out, twins
        self.masks = masks
        if same:
            self.draw_changed()
        else:
            self._set_columns()

    def _set_columns(self) -> None:
        self.narrow, self.tight = self.size.width < NARROW, self.size.width < TIGHT
        columns = [Column("", 1), name_column(self.entries), Column("Length", 7, True), Column("Frames", 9, True)]
        columns += [*([] if self.tight else [Column("FPS", 5, True)])]
        columns += [*([] if self.narrow else [Column("Size", 9, True)])]
        columns += [*([] if self.tight else [Column("Speed", 9, True)])]
        columns += [*([Column("Mask", 5)] if self.masks else []), Column("Caption", None)]
        self.set_rows(columns, len(self.entries))

    def on_resize(self) -> None:
        """Also told when it is shown again."""
        if not self.columns or (self.size.width < NARROW, self.size.width < TIGHT) != (self.narrow, self.tight):
            self._set_columns()
        super().on_resize()

    @property
    def current(self) -> ClipEntry | None:
        return self.entries[self.cursor_row] if self.cursor_row < len(self.entries) else None

    def cells(self, row: int) -> list[Text]:
        entry, panel = self.entries[row], self.panel
        clip, out = entry.clip, entry.name in self.left_out
        name = Text(shorten(escaped(entry.name), NAME))
        if clip is None:
            blank = [Text("")] * (2 + 2 * (not self.tight) + (not self.narrow) + self.masks)
            blank[1] = Text("left out" if out else "")
            return [Text(OUT if out else WRONG), name, *blank, Text(escaped(f"✗ {entry.problem}"))]
        video = clip.kind == "video"
        like, held = self.twins.get(entry.path), entry.path in self.held
        twin = like.said(entry.name, self.left_out) if like is not None else ""
        default = panel.default_caption if panel else ""
        caption = clip.caption if clip.has_caption else f"default: {default}" if default else "✗ none"
        caption = f"✗ {entry.caption_problem}" if entry.caption_problem else caption
        return [
            Text(OUT if out else HELD if held else TWIN if twin else ""),
            name,
            Text(f"{clip.duration:.1f} s" if video else "image"),
            Text("left out" if out else "held out" if held else frames_text(clip, panel)),
            *([] if self.tight else [Text(f"{clip.fps:.3g}" + ("~" if clip.variable_rate else "") if video else "")]),
            *([] if self.narrow else [Text(f"{clip.width}x{clip.height}")]),
            *([] if self.tight else [Text("" if out else speed_text(speed_of(clip, panel)) if panel else "…")]),
            *([Text(MASKS[clip.mask.kind] if clip.mask else "")] if self.masks else []),
            Text(escaped((f"{twin} · " if twin else "") + caption)),
        ]


class CaptionTable(LongTable):
    """One row per clip: where its caption comes from, and how it reads when it trains."""

    entries: Sequence[ClipEntry] = ()
    panels: Sequence[DatasetPanel] = ()
    left_out: Sequence[frozenset[str]] = ()
    trigger = ""

    def show(
        self,
        entries: Sequence[ClipEntry],
        panels: Sequence[DatasetPanel],
        left_out: Sequence[frozenset[str]],
        trigger: str,
    ) -> None:
        same = entries is self.entries
        self.entries, self.panels, self.left_out, self.trigger = entries, panels, left_out, trigger
        if same:
            self.draw_changed()
            return
        self.set_rows([name_column(entries), Column("From", 8), Column("Reads as", None)], len(entries))

    @property
    def current(self) -> ClipEntry | None:
        return self.entries[self.cursor_row] if self.cursor_row < len(self.entries) else None

    def cells(self, row: int) -> list[Text]:
        entry = self.entries[row]
        name = Text(shorten(escaped(entry.name), NAME))
        panel, clip = self.panels[entry.dataset], entry.clip
        if entry.name in self.left_out[entry.dataset]:
            return [name, Text("left out"), Text("⊘ does not train")]
        if clip is None:
            return [name, Text("✗"), Text(escaped(entry.problem))]
        if entry.caption_problem:
            return [name, Text("✗ unread"), Text(escaped(entry.caption_problem))]
        text = fill_trigger(clip.caption_or(panel.default_caption), self.trigger)
        source = "own" if clip.has_caption else "default" if panel.default_caption else "✗ none"
        return [name, Text(source), Text(escaped(text) or "(empty)")]
