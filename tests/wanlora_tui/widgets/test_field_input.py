import asyncio
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.widgets import Static

from presets.job.fields import FIELDS, field_of
from tests.helpers.interface.wizard_pilot import screen_text, type_text
from tests.helpers.waiting import until_async
from wanlora_tui.output.typed_paths import absolute, complete_path
from wanlora_tui.widgets import field_input
from wanlora_tui.widgets.field_input import Choice, FieldInput, FieldText, range_text, value_text
from wanlora_tui.widgets.folder_picker import PathInput

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds


class Form(App[None]):
    def __init__(self, *rows: FieldInput) -> None:
        super().__init__()
        self.rows, self.posted = rows, list[FieldInput.Changed]()

    def compose(self) -> ComposeResult:
        yield from self.rows

    def on_field_input_changed(self, event: FieldInput.Changed) -> None:
        self.posted.append(event)


def row(path: str, value: Any = None, *, reason: str | None = "it suits you", **more: Any) -> FieldInput:
    value = field_of(path).default if value is None else value
    return FieldInput(path, value, recommended=more.pop("recommended", value), reason=reason, **more)


def error_of(field: FieldInput) -> str:
    shown = field.query_one(".field-error", Static)
    return str(shown.render()) if shown.display else ""


def note_of(field: FieldInput) -> str:
    return str(field.query_one(".field-note", Static).render())


async def test_every_field_has_a_control_a_label_and_help() -> None:
    rows = [row(f.path, "x" if f.required else None) for f in FIELDS.values()]
    async with Form(*rows).run_test(size=(80, 24)):
        for field in rows:
            assert isinstance(field.control, Choice if field.field.choices else FieldText)
            assert field.field.label in str(field.query_one(".field-label", Static).render())
            assert field.field.help in field.help_lines()


def test_the_help_says_what_a_field_that_is_left_out_stands_for() -> None:
    assert "Default: left out: 25." in row("sample.steps", reason="", placeholder="left out: 25").help_lines()


async def test_a_choice_can_be_left_out_again() -> None:
    form = Form(row("sample.sampler", reason=""))
    async with form.run_test(size=(80, 24)) as pilot:
        field = form.rows[0]
        assert field.value is None and "left out" in screen_text(form) and note_of(field) == "default"
        field.control.focus()
        for value in ("flowmatch", "unipc", None):
            await pilot.press("right")
            assert field.value == value == form.posted[-1].value


async def test_bad_input_is_said_at_once_and_goes_when_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_input, "REST", 0.1)
    form = Form(row("training.batch_size"))
    async with form.run_test(size=(80, 24)) as pilot:
        field = form.rows[0]
        field.control.focus()
        await pilot.press("end")
        await type_text(pilot, "0x")
        assert "✗ not valid" in note_of(field)
        await until_async(lambda: "Expected integer" in error_of(field), "what is wrong")
        assert (form.posted[-1].text, bool(form.posted[-1].error)) == ("10x", True)
        await until_async(lambda: "Expected integer" in screen_text(form), "the line of the error")
        await pilot.press("backspace", "backspace")
        assert error_of(field) == ""
        assert (form.posted[-1].value, form.posted[-1].error) == (1, "")


async def test_fields_below_stay_where_they_are_while_one_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_input, "REST", 0.2)
    form = Form(row("training.lr", 0.5), row("training.steps"))
    async with form.run_test(size=(80, 24)) as pilot:
        field, below = form.rows
        high = below.region.y
        field.control.focus()
        await pilot.press("end", "e")
        assert "not valid" in note_of(field) and below.region.y == high
        await until_async(lambda: below.region.y > high, "the room of the error")
        low = below.region.y
        form.post_message(events.Key("minus", "-"))  # faster than the pilot, which waits after each key
        form.post_message(events.Key("2", "2"))
        await until_async(lambda: field.error == "", "a number")
        assert error_of(field) == "" and below.region.y == low
        await until_async(lambda: below.region.y == low - 1, "the line to go once nobody types")


async def test_who_leaves_a_field_sees_at_once_what_is_wrong_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_input, "REST", 1000.0)
    form = Form(row("training.lr"), row("training.steps"))
    async with form.run_test(size=(80, 24)) as pilot:
        field, below = form.rows
        field.control.focus()
        await pilot.press("end", "e")
        assert error_of(field) == ""
        below.control.focus()
        await pilot.pause()
        assert "Expected number" in error_of(field)


async def test_what_is_mended_before_it_was_said_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_input, "REST", 0.1)
    form = Form(row("training.lr"), row("training.steps"))
    async with form.run_test(size=(80, 24)) as pilot:
        field, below = form.rows
        field.control.focus()
        high = below.region.y
        await type_text(pilot, "e")
        await type_text(pilot, "1")
        field.control.value = "0.5"
        await until_async(lambda: field.error == "", "a number")
        await asyncio.sleep(0.3)
        assert error_of(field) == "" and below.region.y == high


@pytest.mark.parametrize(
    ("path", "text", "wrong"),
    [
        ("training.batch_size", "65", "64"),
        ("training.lr", "fast", "number"),
        ("datasets.resolutions", "512, big", "integer"),
        ("training.lr", "", "number"),
        ("job.name", "a b", "letters"),
    ],
)
async def test_limits_and_types_are_named(path: str, text: str, wrong: str) -> None:
    form = Form(row(path, "x" if path == "job.name" else None))
    async with form.run_test(size=(80, 24)):
        form.rows[0].control.value = text
        await until_async(lambda: wrong in error_of(form.rows[0]), "what is wrong")


async def test_choices_change_by_arrow_and_by_list() -> None:
    form = Form(row("training.timestep_type"), row("training.dop"), row("model.low_vram"))
    async with form.run_test(size=(80, 24)) as pilot:
        form.rows[0].control.focus()
        await pilot.press("right")
        assert form.posted[-1].value == "sigmoid"
        await pilot.press("left", "left")
        assert form.posted[-1].value == "shift"
        await pilot.press("down", "enter", "up", "enter")
        assert (form.posted[-1].path, form.posted[-1].value) == ("training.dop", True)
        await pilot.press("down", "right")
        assert (form.posted[-1].path, form.posted[-1].value) == ("model.low_vram", True)
        await pilot.press("right")
        assert form.posted[-1].value is False


async def test_the_note_tells_recommended_yours_and_default_by_word() -> None:
    form = Form(
        row("training.steps"), row("training.lr", reason=""), row("sample.prompts.prompt", "hello", reason=None)
    )
    async with form.run_test(size=(80, 24)) as pilot:
        assert [note_of(r) for r in form.rows] == ["◆ recommended", "default", ""]
        form.rows[0].control.value = "1800"
        await pilot.pause()
        assert note_of(form.rows[0]) == "● yours, ◆ 2000"
        form.rows[0].reset()
        await pilot.pause()
        assert (note_of(form.rows[0]), form.posted[-1].value) == ("◆ recommended", 2000)
        assert "Recommended 2000: it suits you" in form.rows[0].help_lines()
        assert "Default: 1e-4" in form.rows[1].help_lines()


async def test_text_that_was_wrong_is_shown_again_with_its_error() -> None:
    form = Form(row("training.steps", typed="many"))
    async with form.run_test(size=(80, 24)) as pilot:
        assert form.rows[0].control.value == "many"
        assert "Expected integer" in error_of(form.rows[0])
        assert form.posted == []
        form.rows[0].set_value(1500, recommended=1500, reason="twelve clips")
        await pilot.pause()
        assert form.rows[0].control.value == "many"  # what was typed is the user's to mend


async def test_a_value_from_outside_arrives_and_posts_nothing() -> None:
    form = Form(row("training.steps"), row("training.ema"))
    async with form.run_test(size=(80, 24)) as pilot:
        form.rows[0].set_value(1500, recommended=1500, reason="twelve clips")
        form.rows[1].set_value(True, recommended=True, reason="")
        await pilot.pause()
        assert (form.rows[0].control.value, form.rows[1].control.value) == ("1500", True)
        assert form.posted == []


async def test_a_value_that_comes_before_the_row_stands_is_shown() -> None:
    form = Form(row("training.steps"), row("training.ema"))

    def compose_then_change(field: FieldInput, value: object) -> None:
        plain = field.compose
        field.compose = lambda: [*plain(), field.set_value(value, recommended=value, reason="")][:-1]  # type: ignore[method-assign, func-returns-value]

    compose_then_change(form.rows[0], 1500)
    compose_then_change(form.rows[1], True)
    async with form.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert (form.rows[0].control.value, form.rows[1].control.value) == ("1500", True)
        assert form.posted == []


async def test_older_values_from_outside_do_not_undo_what_is_typed() -> None:
    form = Form(row("job.trigger"))
    async with form.run_test(size=(80, 24)) as pilot:
        field = form.rows[0]
        field.control.focus()
        await type_text(pilot, "ab")
        field.taken()  # the "a" has arrived outside, the "ab" has not
        field.set_value("a", recommended="", reason="")
        await pilot.pause()
        assert (field.control.value, field.value) == ("ab", "ab")
        field.taken()
        field.set_value("xy", recommended="xy", reason="")
        await pilot.pause()
        assert (field.control.value, field.value, len(form.posted)) == ("xy", "xy", 2)


async def test_a_path_being_typed_is_not_replaced_by_its_resolved_form(tmp_path: Path) -> None:
    form = Form(row("datasets.path", "x", base=tmp_path, reason=None))
    async with form.run_test(size=(80, 24)) as pilot:
        form.rows[0].control.focus()
        await pilot.pause()
        form.rows[0].set_value(str(tmp_path / "x"), recommended="", reason=None)
        await pilot.pause()
        assert form.rows[0].control.value == "x"


@pytest.mark.parametrize("pasted", ["'{}'\n", "{} ", "file://{}"])
async def test_a_path_field_holds_the_file_that_was_dragged_into_it(tmp_path: Path, pasted: str) -> None:
    image = tmp_path / "it.png"
    form = Form(row("sample.prompts.ctrl_img", "", base=tmp_path, reason=None), row("training.dop_class", ""))
    async with form.run_test(size=(80, 24)) as pilot:
        for field in form.rows:
            field.control.focus()
            await pilot.pause()
            field.control.post_message(events.Paste(pasted.format(image)))
            await pilot.pause()
    assert form.rows[0].value == str(image)
    assert form.rows[1].value == pasted.format(image).splitlines()[0].strip()  # that one takes prose, not a path


async def test_no_suggestion_is_drawn_behind_text_that_it_does_not_continue(tmp_path: Path) -> None:
    (tmp_path / "my clips").mkdir()
    suggester = PathInput(base=tmp_path).suggester
    assert suggester is not None
    assert await suggester.get_suggestion("my cl") == "my clips/"
    assert await suggester.get_suggestion("my\\ cl") is None


async def test_tab_completes_a_path_then_goes_on(tmp_path: Path) -> None:
    (tmp_path / "clips" / "orbit").mkdir(parents=True)
    form = Form(row("datasets.path", "x", base=tmp_path), row("datasets.weight"))
    async with form.run_test(size=(80, 24)) as pilot:
        control = form.rows[0].control
        assert isinstance(control, PathInput)
        control.value = ""
        control.focus()
        await pilot.press("c", "tab")
        assert control.value == "clips/"
        await pilot.press("o", "r", "tab", "tab")
        await until_async(lambda: form.focused is form.rows[1].control, "the next field")
        assert control.value == "clips/orbit/"


def test_completion_looks_as_a_shell_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("clips", "clouds", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "clip.png").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    images = frozenset({".png"})
    assert complete_path("cl", tmp_path, None) == "clips/"
    assert complete_path("cl", tmp_path, images) == "clip.png"
    assert complete_path("clo", tmp_path, None) == "clouds/"
    assert complete_path("~/clo", Path("/"), None) == "~/clouds/"
    assert complete_path(f"{tmp_path}/clo", Path("/"), None) == f"{tmp_path}/clouds/"
    assert complete_path(".h", tmp_path, None) == ".hidden/"
    for nothing in ("", "x", "clips/", "~", "nowhere/x", "~nobody-of-this-name/x"):
        assert complete_path(nothing, tmp_path, None) is None
    assert absolute("~/clips", Path("/else")) == tmp_path / "clips"
    assert absolute(" clips ", tmp_path) == tmp_path / "clips"
    assert absolute("../clips", tmp_path / "x") == tmp_path / "clips"


def test_values_and_ranges_read_as_people_write_them() -> None:
    assert [value_text(v) for v in (True, False, None, [512, 768], 1e-4, 5e-5, 0.05, "a", 41)] == [
        "on",
        "off",
        "",
        "512, 768",
        "1e-4",
        "5e-5",
        "0.05",
        "a",
        "41",
    ]
    assert range_text(FIELDS["training.batch_size"]) == "integer, 1 to 64"
    assert range_text(FIELDS["save.every"]) == "integer, 1 or more steps"
    assert range_text(FIELDS["job.seed"]) == "integer, 0 or more"
    assert range_text(FIELDS["training.lr"]) == "number, above 0, at most 10"
    assert range_text(FIELDS["multistage.high.lr"]).endswith("above 0, at most 10")
