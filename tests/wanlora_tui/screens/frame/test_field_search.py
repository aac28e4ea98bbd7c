"""Every field of a job is found in the palette, and leads to where it is set, or where its table is made."""

from pathlib import Path

import pytest
from textual.command import CommandList
from textual.pilot import Pilot
from textual.widgets import Button

from presets.job.fields import FIELDS, field_of
from tests.helpers.interface.wizard_pilot import make_clips, scanned, screen_of, until, wizard
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.screens.frame.field_search import FieldSearch
from wanlora_tui.widgets.field_input import FieldInput

pytestmark = pytest.mark.usefixtures("drawn_when_looked_at")


def kept(tmp_path: Path, folders: int = 1) -> Path:
    """A draft with so many folders, and no merge, prompt or table of layers."""
    clips = [str(make_clips(tmp_path / f"clips{i}", 1)) for i in range(folders)]
    DraftStore(tmp_path / "draft.json").save(Draft(step="clips", kind="motion", folders=clips))
    return tmp_path / "draft.json"


async def found(search: FieldSearch, words: str) -> set[str]:
    """The fields found, in general."""
    texts = [str(hit.text) async for hit in search.search(words)]
    return {field_of(path).path for text in texts if (path := text.partition(" · ")[2])}


async def picked(pilot: Pilot[None], words: str) -> str:
    """Type words into the palette and take the first find; gives what is notified then."""
    app = pilot.app
    await pilot.press("ctrl+p", *("space" if c == " " else c for c in words))
    await until(
        pilot,
        lambda: (
            (lists := app.screen.query(CommandList))
            and lists.first().option_count
            and words in str(lists.first().get_option_at_index(0).hit.text)  # type: ignore[attr-defined]
        ),
        f"{words} found",
    )
    before = [notice.message for notice in app._notifications]
    await pilot.press("enter")
    await until(pilot, lambda: [n.message for n in app._notifications] not in ([], before), "where it leads")
    await until(pilot, lambda: len(app._notifications) == 1, "what was said before it, gone")
    return next(iter(app._notifications)).message


@pytest.mark.parametrize("folders", [0, 1])
async def test_every_field_is_found_by_the_words_of_its_label_and_of_its_path(tmp_path: Path, folders: int) -> None:
    async with wizard(kept(tmp_path, folders)) as pilot:
        await pilot.press("enter")
        await until(pilot, lambda: screen_of(pilot).pane, "the step")
        if folders:
            await scanned(pilot)
        search = FieldSearch(screen_of(pilot))
        for path, field in FIELDS.items():
            for words in (field.label, path.rpartition(".")[2], path):
                assert path in await found(search, words), words


async def test_a_field_whose_table_is_not_there_leads_to_where_it_is_made(tmp_path: Path) -> None:
    async with wizard(kept(tmp_path)) as pilot:
        await pilot.press("enter")
        await scanned(pilot)
        screen = screen_of(pilot)

        said = await picked(pilot, "model.merge.strength")
        row = next(n for n in pilot.app.focused.ancestors if isinstance(n, FieldInput))
        assert row.path == "model.merge[0].path"
        assert said == "model.merge.strength comes with a LoRA to merge: name its file here"

        said = await picked(pilot, "target.layers.lr_factor")
        assert pilot.app.focused is screen.query_one("#add-layers", Button)
        assert said.startswith("target.layers.lr_factor comes with a table")

        said = await picked(pilot, "sample.prompts.seed")
        assert pilot.app.focused is screen.query_one("#from-clips", Button)
        assert said.startswith("sample.prompts.seed comes with a prompt")


async def test_a_field_of_a_step_that_is_not_open_yet_leads_to_what_is_to_be_done_first(tmp_path: Path) -> None:
    async with wizard(kept(tmp_path, 0)) as pilot:
        await pilot.press("enter")
        await until(pilot, lambda: screen_of(pilot).pane, "the step")
        assert (await picked(pilot, "training.lr")).startswith("training.lr: Add a folder of clips first")
        assert screen_of(pilot).step == "clips"
        assert (await picked(pilot, "datasets.path")).startswith("datasets.path comes with a folder of clips")
