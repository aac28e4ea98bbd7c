"""What the wizard's table says of a clip's frames and speed."""

from textual.app import App, ComposeResult

from presets.clips.likeness.alike import Twin
from presets.job.schema import DatasetPanel
from tests.helpers.facts import clip, image
from tests.helpers.interface.wizard_pilot import screen_text
from wanlora_tui.draft.clip_list import ClipEntry
from wanlora_tui.widgets.clip_table import ClipTable, frames_text, speed_of


def test_frames_that_train_of_those_there_are() -> None:
    long, short = clip(frames=120, fps=24), clip(frames=30, fps=24)
    assert frames_text(long, None) == "120", "no job yet"
    assert frames_text(long, DatasetPanel(path="c")) == "41 of 120"
    assert frames_text(clip(frames=41), DatasetPanel(path="c")) == "41"
    assert frames_text(image(), DatasetPanel(path="c")) == "1"
    assert frames_text(short, DatasetPanel(path="c", short_clips="shorten")) == "29 of 30"
    assert frames_text(long, DatasetPanel(path="c", sampling="head", windows=3, num_frames=17)) == "3x 17 of 120"


def test_a_shortened_clip_has_the_speed_of_its_own_frames() -> None:
    short = clip(frames=30, fps=24)
    assert speed_of(short, DatasetPanel(path="c", short_clips="shorten")) == 1.25 * 16 / 29
    assert speed_of(short, DatasetPanel(path="c", sampling="head", short_clips="shorten")) == 1.0


class TableApp(App[None]):
    def compose(self) -> ComposeResult:
        yield ClipTable(id="clips")


async def test_where_there_is_little_room_the_caption_comes_before_rate_and_speed() -> None:
    entries = [
        ClipEntry(0, "a.mp4", "/c/a.mp4", clip("/c/a.mp4", caption="a horse turns")),
        ClipEntry(0, "b.mp4", "/c/b.mp4", None, "no film"),
    ]
    app = TableApp()
    async with app.run_test(size=(58, 8)) as pilot:
        table = app.query_one(ClipTable)
        for width, labels in {58: 5, 80: 7, 100: 8}.items():
            await pilot.resize_terminal(width, 8)
            table.show(entries, DatasetPanel(path="/c"), frozenset(), {}, masks=False)
            await pilot.pause()
            assert len(table.columns) == labels == len(table.cells(0)) == len(table.cells(1))
            assert "a horse" in screen_text(app) and "✗ no film" in screen_text(app)


async def test_a_clip_is_like_the_first_that_trains() -> None:
    names = ["a.mp4", "b.mp4", "c.mp4"]
    entries = [ClipEntry(0, name, f"/c/{name}", clip(f"/c/{name}", caption="a horse")) for name in names]
    twins = dict.fromkeys([e.path for e in entries[1:]], Twin("same bytes as", names))
    app = TableApp()
    async with app.run_test(size=(80, 8)):
        table = app.query_one(ClipTable)
        for left_out, said in (
            (set(), ["", "same bytes as a.mp4", "same bytes as a.mp4"]),
            ({"a.mp4"}, ["", "", "same bytes as b.mp4"]),
            ({"a.mp4", "b.mp4"}, ["", "", ""]),
        ):
            table.show(entries, DatasetPanel(path="/c"), frozenset(left_out), twins, masks=False)
            cells = [table.cells(row) for row in range(3)]
            assert [str(row[-1]).rpartition(" · ")[0] for row in cells] == said
            marks = ["⊘" if name in left_out else "≈" if like else "" for name, like in zip(names, said, strict=True)]
            assert [str(row[0]) for row in cells] == marks
