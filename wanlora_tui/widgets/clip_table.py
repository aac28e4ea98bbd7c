"""Tables of clips: what was found in a folder, and how its captions will read.

What is wrong with clips is shown by the wizard's step (wanlora_tui.screens.wizard.clips).
"""

from pathlib import Path

from rich.text import Text
from textual.widgets import DataTable

from presets.clips.captions import fill_trigger
from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.clips.geometry import uniform_speed
from presets.job.schema import DatasetPanel
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import shorten


class ListTable(DataTable[Text]):
    """A table of rows, with the keys of a list."""

    BINDINGS = bindings("list.down", "list.up", "table.top", "table.bottom")

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=True, cell_padding=1)


def speed_of(clip: ClipFacts, panel: DatasetPanel) -> float:
    """How much faster than life the clip trains with this dataset's frames and sampling."""
    return (
        uniform_speed(clip.duration, panel.num_frames) if panel.sampling == "uniform" and clip.kind == "video" else 1.0
    )


def speed_text(speed: float) -> str:
    """`2.4x fast`, `0.8x slow`, `1.0x`."""
    return f"{speed:.1f}x" + (" fast" if speed >= 1.05 else " slow" if speed < 0.95 else "")


class ClipTable(ListTable):
    """One row per clip of a dataset."""

    def show(self, found: DatasetFacts, panel: DatasetPanel | None) -> None:
        """Fill the table; without a panel (no job yet) the speed stays open."""
        self.clear(columns=True)
        self.add_columns(
            Text("Clip"),
            *(Text(name, justify="right") for name in ("Length", "Frames", "FPS", "Size", "Speed")),
            Text("Caption"),
        )
        for clip in found.clips:
            video = clip.kind == "video"
            default = panel.default_caption if panel else ""
            caption = clip.caption if clip.has_caption else f"default: {default}" if default else "✗ none"
            self.add_row(
                Text(shorten(str(Path(clip.path).relative_to(found.path)), 24)),
                Text(f"{clip.duration:.1f} s" if video else "image", justify="right"),
                Text(str(clip.frames), justify="right"),
                Text(f"{clip.fps:.3g}" + ("~" if clip.variable_rate else "") if video else "", justify="right"),
                Text(f"{clip.width}x{clip.height}", justify="right"),
                Text(speed_text(speed_of(clip, panel)) if panel else "…", justify="right"),
                Text(caption),
            )


class CaptionTable(ListTable):
    """One row per clip: where its caption comes from, and how it reads when it trains."""

    def show(self, found: list[tuple[DatasetFacts, DatasetPanel]], trigger: str) -> None:
        self.clear(columns=True)
        self.add_columns(*map(Text, ("Clip", "From", "Reads as")))
        for facts, panel in found:
            for clip in facts.clips:
                text = fill_trigger(clip.caption_or(panel.default_caption), trigger)
                source = "own" if clip.has_caption else "default" if panel.default_caption else "✗ none"
                self.add_row(
                    Text(shorten(str(Path(clip.path).relative_to(facts.path)), 24)),
                    Text(source),
                    Text(text or "(empty)"),
                )
