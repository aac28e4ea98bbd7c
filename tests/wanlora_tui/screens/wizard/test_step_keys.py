"""The keys of a step: where they work, what is offered, and undo held down."""

import pytest
from textual.widgets import Button, Input, Static

from presets.findings import Finding
from tests.helpers.interface.wizard_pilot import (
    at_step,
    make_clips,
    scanned,
    screen_of,
    screen_text,
    until,
    wizard,
)
from tests.wanlora_tui.screens.wizard.test_mending import at_clips, on_top
from wanlora_tui.screens.wizard.clip_dialogs import CaptionsDialog
from wanlora_tui.widgets.fitting_footer import FittingFooter

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds


async def test_the_keys_of_the_clips_work_while_the_buttons_below_have_the_focus(tmp_path):
    folder = make_clips(tmp_path / "clips", 2)
    (folder / "clip_01.txt").unlink()
    async with wizard(tmp_path / "draft.json", size=(160, 48)) as pilot:
        await at_clips(pilot, folder)
        screen, state = screen_of(pilot), screen_of(pilot).state
        for button in ("#next", "#back"):
            screen.query_one("#back", Button).disabled = False
            screen.query_one(button, Button).focus()
            await until(pilot, lambda button=button: screen.focused is screen.query_one(button), "the button")
            offered = {b.binding.id for b in screen.active_bindings.values() if b.enabled}
            assert {"wizard.leave_out", "wizard.add_trigger", "wizard.fill_captions", "wizard.browse"} <= offered
            await pilot.press("x")
            await pilot.pause()
            assert bool(state.job().datasets[0].exclude) == (button == "#next")
        for key, title in (("t", "Add the trigger word"), ("i", "Fill captions")):
            await pilot.press(key)
            dialog = await on_top(pilot, CaptionsDialog)
            assert title in screen_text(pilot.app)
            await pilot.press("escape")
            await until(pilot, lambda dialog=dialog: pilot.app.screen is not dialog, "the step")


async def test_what_has_nothing_to_act_on_is_not_offered(tmp_path):
    def offered() -> set[str | None]:
        return {b.binding.id for b in screen_of(pilot).active_bindings.values() if b.enabled}

    folder = make_clips(tmp_path / "clips", 1)
    async with wizard(tmp_path / "draft.json") as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        screen_of(pilot).query_one("#folder").focus()
        await pilot.pause()
        assert not offered() & {"wizard.remove", "wizard.leave_out", "wizard.fill_captions"}
        screen_of(pilot).query_one("#folder", Input).value = str(folder)
        await pilot.press("enter")
        await scanned(pilot)
        await pilot.pause()
        assert "wizard.remove" in offered()
        await screen_of(pilot).go_to("prompts")
        assert not offered() & {"wizard.remove", "wizard.hold_out", "wizard.browse"} and "wizard.add" in offered()
        await pilot.press("ctrl+l")
        await until(pilot, lambda: screen_of(pilot).query("#prompt-0"), "the prompt")
        await pilot.pause()
        assert offered() >= {"wizard.remove", "wizard.hold_out", "wizard.browse"}


async def test_what_a_browser_takes_with_ctrl_has_a_sign_outside_of_texts(tmp_path):
    folder = make_clips(tmp_path / "clips", 3)
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_clips(pilot, folder)
        screen = screen_of(pilot)
        await screen.go_to("prompts")

        def prompts() -> list[str]:
            return [p.prompt for p in screen.state.job().sample.prompts]

        async def press(key: str, number: int) -> None:
            screen.query_one("#next", Button).focus()
            await pilot.pause()
            await pilot.press(key)
            await until(pilot, lambda: len(prompts()) == number, f"{number} prompts")

        await press("c", 2)
        await press("plus", 3)
        screen.query_one("#prompt-2").query(Input).first().focus()
        await pilot.pause()
        await pilot.press("c", "-", "=", "+")  # typed
        assert prompts()[2] == "c-=+"


async def test_remove_is_no_cut_where_the_focus_has_selected_the_text(tmp_path):
    folder = make_clips(tmp_path / "clips", 1)
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_clips(pilot, folder)
        state = screen_of(pilot).state
        await screen_of(pilot).go_to("prompts")
        await pilot.press("ctrl+l")
        await until(pilot, lambda: screen_of(pilot).query("#prompt-0"), "the prompt")
        text = screen_of(pilot).query_one("#prompt-0").query(Input).first()
        await until(pilot, lambda: not text.selection.is_empty, "the text, selected")
        await pilot.press("home", "shift+end", "ctrl+x")
        await until(pilot, lambda: not state.draft.prompts[0].prompt, "what was selected, cut")
        await pilot.press(*"orbit", "tab", "shift+tab")
        await until(pilot, lambda: text.has_focus and not text.selection.is_empty, "the text, selected again")
        await pilot.press("ctrl+x")
        await until(pilot, lambda: not state.draft.prompts, "the prompt, removed")


async def test_the_review_offers_a_fix_where_there_is_something_to_fix(tmp_path):
    folder = make_clips(tmp_path / "clips", 1)
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_clips(pilot, folder)
        await screen_of(pilot).go_to("review")
        pane = screen_of(pilot).pane
        await until(pilot, lambda: pane.findings and not pane.checking, "the findings")

        def offered() -> set[str | None]:
            found = {b.binding.id for b in screen_of(pilot).active_bindings.values() if b.enabled}
            return found & {"wizard.fix", "wizard.fix_all"}

        by_hand = [found for found in pane.findings if not found.set]
        assert by_hand, "one that only its user can mend"
        applied = Finding(code="few", severity="advice", field="save.keep", message="m", fix="f", set={"save.keep": 2})
        for left, ways in (([*by_hand, applied], 2), (by_hand, 0), ([], 0)):
            pane.findings = left
            pane.show_findings()
            assert len(offered()) == ways and pane.query_one("#fix").display is bool(ways)


async def test_undo_held_down_says_the_last_change_alone(tmp_path):
    folder = make_clips(tmp_path / "clips", 3)
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_clips(pilot, folder)
        for _ in range(2):
            await pilot.press("x", "j")
        await pilot.press("u", "u", "U", "U", "U")  # in one, for its first key takes away what stood there
        await pilot.pause()
        assert [n.message.partition(":")[0] for n in pilot.app._notifications] == ["made again"]


async def test_undo_is_offered_where_there_is_something_to_take_back(tmp_path):
    def in_footer() -> list[str]:
        return [key.label for key in screen_of(pilot).query_one(FittingFooter).shown]

    def offered() -> set[str | None]:
        return {b.binding.id for b in screen_of(pilot).active_bindings.values()} & {"wizard.undo", "wizard.redo"}

    folder = make_clips(tmp_path / "clips", 2)
    async with wizard(tmp_path / "draft.json", size=(160, 48)) as pilot:
        await until(pilot, lambda: "Help" in in_footer(), "the footer")
        assert "Undo" not in in_footer() and not offered()
        await at_clips(pilot, folder)
        await until(pilot, lambda: "Undo" in in_footer(), "the kind and the folder can be taken back")
        for _ in range(len(screen_of(pilot).history._undo)):
            await pilot.press("ctrl+underscore")
        await until(pilot, lambda: "Undo" not in in_footer(), "all is taken back")
        assert offered() == {"wizard.redo"}
        await pilot.press("ctrl+y")
        await until(pilot, lambda: "Undo" in in_footer(), "the change that was made again")


async def test_undo_of_a_prompt_opens_its_own_values_for_one_of_those_alone(tmp_path):
    folder = make_clips(tmp_path / "clips", 1)
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_clips(pilot, folder)
        await screen_of(pilot).go_to("prompts")
        await pilot.press("ctrl+l")
        await until(pilot, lambda: screen_of(pilot).query("#prompt-0"), "the prompt")
        await pilot.press(*"orbit")
        await pilot.press("ctrl+underscore")
        await until(pilot, lambda: screen_of(pilot).state.draft.prompts[0].prompt != "orbit", "the text, taken back")
        await pilot.pause()
        assert not screen_of(pilot).query_one("#prompt-0").has_class("-open")
        screen_of(pilot).state.set_value("sample.prompts[0].seed", 7)
        screen_of(pilot).keep()
        await pilot.press("ctrl+underscore")
        await until(pilot, lambda: screen_of(pilot).query_one("#prompt-0").has_class("-open"), "the seed's field")
        await until(pilot, lambda: screen_of(pilot).query_one(".own").has_focus_within, "the focus in it")


async def test_what_was_wrong_with_no_folder_goes_once_one_is_typed(tmp_path):
    async with wizard(tmp_path / "draft.json") as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        said = screen_of(pilot).query_one("#folder-problem", Static)
        await pilot.press("enter")
        await until(pilot, lambda: "Type a folder first" in str(said.content), "what is wrong")
        await pilot.press("c")
        await until(pilot, lambda: not said.content, "nothing wrong any more")
