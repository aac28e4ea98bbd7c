"""Draft to job, step order and forecast: no screen, no terminal."""

from pathlib import Path

import msgspec
import pytest

from presets.clips.clip_facts import scan_dataset
from presets.errors import JobError
from presets.facts.gather import gather
from presets.findings import Finding
from presets.job.fields import FIELDS
from presets.job.schema import DatasetPanel, PromptPanel
from presets.job.toml_file import dump_job, get_value, job_from_dict, load_job, parse_job, save_job
from presets.machine.machine import read_machine
from tests.helpers.facts import gpu, machine
from tests.helpers.interface.wizard_pilot import make_base, make_clips
from tests.helpers.loras import pair, write_lora_file
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.draft.forecast import forecast
from wanlora_tui.draft.job_draft import PANELS, WizardState
from wanlora_tui.draft.steps import NAMES, STEPS, position, step_of_field


def a_state(tmp_path: Path, *, folders: int = 1, scan: bool = True) -> WizardState:
    state = WizardState(Draft(kind="motion"), tmp_path)
    state.machine = machine(gpu(80))
    for i in range(folders):
        assert state.add_folder(make_clips(tmp_path / f"set_{i}", 2 + i)) == ""
        if scan:
            state.scans[state.draft.folders[i]] = scan_dataset(DatasetPanel(path=state.draft.folders[i]), i, tmp_path)
    state.refresh()
    return state


def test_there_is_no_job_before_kind_folder_and_machine(tmp_path: Path) -> None:
    state = WizardState(Draft(), tmp_path)
    state.refresh()
    assert not state.ready
    assert state.blocked("kind") and state.furthest("review") == "kind"
    state.set_kind("style")
    assert not state.blocked("kind") and "folder" in state.blocked("clips") and state.furthest("review") == "clips"
    state.add_folder(make_clips(tmp_path / "clips"))
    assert "machine" in state.blocked("clips") and not state.ready
    state.machine = read_machine(tmp_path)
    state.refresh()
    assert state.ready and state.furthest("review") == "review"
    assert state.job() == state.recommended_job()


def test_no_reason_is_given_for_a_value_that_the_user_has_changed(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    before = {path: value for path, value, _ in state.reasons()}
    assert before["training.steps"] == state.value("training.steps")
    state.set_value("training.steps", 777)
    assert {path for path, _, _ in state.reasons()} == before.keys() - {"training.steps"}
    state.set_value("training.steps", before["training.steps"])
    assert {path for path, _, _ in state.reasons()} == before.keys()


def test_choices_lie_over_the_recommendation_and_follow_it_when_equal(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    recommended = state.recommended("training.steps")[0]
    state.set_value("training.steps", 777)
    state.set_value("datasets[0].resolutions", [512, 768])
    assert (state.job().training.steps, state.job().datasets[0].resolutions) == (777, [512, 768])
    assert state.changed("training") == 1
    state.set_kind("character")
    assert state.job().training.steps == 777 and state.job().job.kind == "character" and state.job().training.dop
    state.set_kind("motion")
    state.set_value("training.steps", recommended)
    assert "training.steps" not in state.draft.values and state.changed("training") == 0


def test_a_folder_of_held_out_clips_takes_the_place_of_those_that_are_recommended(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    folder = state.draft.folders[0]
    assert state.job().validation.fraction == 0 and "from 34 on" in (state.recommended("validation.fraction")[1] or "")
    state.scans[folder] = msgspec.structs.replace(state.scans[folder], clips=state.scans[folder].clips * 20)
    state.refresh()
    assert state.job().validation.fraction == 0.1
    assert (state.recommended("validation.fraction")[1] or "").startswith("4 of your 40 clips do not train")
    state.set_value("validation.path", str(tmp_path / "held"))
    assert state.job().validation.fraction == 0
    state.set_value("validation.path", "")
    assert state.job().validation.fraction == 0.1


def test_a_field_that_may_be_left_out_can_be_set_and_left_out_again(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    state.set_value("target.alpha", 8.0)
    assert state.job().target.alpha == 8.0
    state.set_value("target.alpha", None)
    assert state.job().target.alpha is None


def test_several_folders_are_several_datasets_and_leave_without_mixing(tmp_path: Path) -> None:
    state = a_state(tmp_path, folders=3)
    state.set_value("datasets[1].weight", 0.5)
    state.set_value("datasets[2].weight", 0.25)
    state.set_typed("datasets[2].repeats", "two")
    assert [d.weight for d in state.job().datasets] == [1.0, 0.5, 0.25]
    assert [Path(d.path).name for d in state.job().datasets] == ["set_0", "set_1", "set_2"]
    state.remove_folder(1)
    assert [(Path(d.path).name, d.weight) for d in state.job().datasets] == [("set_0", 1.0), ("set_2", 0.25)]
    assert state.draft.typed == {"datasets[1].repeats": "two"}
    assert set(state.scans) == set(state.draft.folders)


def test_a_folder_is_refused_twice_missing_or_a_file(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    (tmp_path / "file").write_text("")
    assert "already" in state.add_folder(Path(state.draft.folders[0]))
    assert "No such folder" in state.add_folder(tmp_path / "nowhere")
    assert "not a folder" in state.add_folder(tmp_path / "file")
    assert len(state.draft.folders) == 1


def test_text_that_is_no_value_is_an_error_with_a_fix(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    state.set_typed("training.lr", "fast")
    state.set_typed("datasets[0].num_frames", "4x")
    found = {f.field: f for f in state.findings()}
    assert {f.severity for f in found.values()} == {"error"}
    assert "number" in found["training.lr"].message
    assert state.job().training.lr == state.recommended("training.lr")[0]  # the job stays whole meanwhile
    said = state.apply(list(found.values()))
    assert state.findings() == [] and len(said) == 2


def test_of_two_fixes_for_one_field_the_first_counts(tmp_path: Path) -> None:
    state = a_state(tmp_path)

    def finding(code: str, **fields: object) -> Finding:
        return Finding(
            code=code,
            severity="error",
            field=next(iter(fields)),
            message="",
            fix="",
            set={k.replace("__", "."): v for k, v in fields.items()},
        )

    said = state.apply(
        [
            finding("a", training__steps=100),
            finding("b", training__steps=200, save__every=50),
            finding("c", save__every=25),
        ]
    )
    assert (state.job().training.steps, state.job().save.every) == (100, 25)
    assert said == ["training.steps = 100", "save.every = 25"]


def test_the_written_job_is_relative_to_its_file_and_loads_back(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    base = make_base(tmp_path / "base")
    state.set_value("model.path", str(base))
    state.draft.prompts = [
        PromptPanel(prompt="orbit", ctrl_img=str(tmp_path / "set_0" / "a.png")),
        PromptPanel(prompt="orbit", ctrl_img="/elsewhere/b.png", end_img=str(tmp_path / "z.mp4")),
    ]
    state.draft.job_path = "orbit.toml"
    written = state.written_job()
    assert (written.datasets[0].path, written.model.path) == ("set_0", "base")
    assert [p.ctrl_img for p in written.sample.prompts] == ["set_0/a.png", "/elsewhere/b.png"]
    assert [p.end_img for p in written.sample.prompts] == ["", "z.mp4"]
    save_job(written, state.job_path())
    assert load_job(tmp_path / "orbit.toml") == written
    assert dump_job(written) == (tmp_path / "orbit.toml").read_text()
    state.draft.job_path = "jobs/deeper/orbit.toml"
    assert state.written_job().datasets[0].path == str(tmp_path / "set_0")


def test_where_the_job_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = a_state(tmp_path)
    assert state.job_path() == tmp_path / f"{state.value('job.name')}.toml" and state.path_problem() == ""
    state.set_value("job.name", "other")
    assert state.job_path() == tmp_path / "other.toml"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    state.draft.job_path = "~/jobs/a.toml"
    assert state.job_path() == tmp_path / "home" / "jobs" / "a.toml" and state.path_problem() == ""
    state.draft.job_path = "~nobody-of-this-name/a.toml"  # on the way to another name, say
    assert state.job_path() == tmp_path / "~nobody-of-this-name" / "a.toml"
    assert state.basis() is not None
    state.draft.job_path = str(tmp_path)
    assert "is a folder" in state.path_problem()
    state.draft.job_path = str(tmp_path / "set_0" / "clip_00.mp4" / "a.toml")
    assert "is a file" in state.path_problem()
    state.draft.job_path = "/proc/nothing/a.toml"
    assert "written" in state.path_problem() or not Path("/proc").exists()


def test_names_made_from_folders_are_valid(tmp_path: Path) -> None:
    for folder in ("órbita 360°", "...", "x" * 90, "a"):
        state = WizardState(Draft(kind="motion", folders=[str(tmp_path / folder)]), tmp_path)
        state.machine = machine(gpu(80))
        state.refresh()
        assert state.job().job.name.startswith("wan_i2v_motion")


def test_the_whole_job_survives_a_draft_on_disk(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    state.set_value("training.lr", 5e-5)
    state.set_value("model.boundary", 0.875)
    state.set_value("model.low_vram", True)
    state.add_prompt()
    store = DraftStore(tmp_path / "draft.json")
    store.save(state.draft)
    draft = store.load()
    assert draft is not None
    again = WizardState(draft, tmp_path)
    again.machine, again.scans = state.machine, state.scans
    again.refresh()
    assert again.job() == state.job()


def test_prompts_start_from_the_captions(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    for _ in range(3):
        state.add_prompt()
    assert [p.prompt for p in state.draft.prompts][:2] == [
        "orbit 90 around the subject",
        "orbit 180 around the subject",
    ]
    state.remove_prompt(0)
    assert state.draft.prompts[0].prompt == "orbit 180 around the subject"


def test_the_rank_follows_the_loras_that_the_job_starts_from(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    for name, rank in (("high", 4), ("low", 8)):
        write_lora_file(tmp_path / f"{name}.safetensors", pair(rank=rank))
    usual = state.value("target.rank")
    state.set_value("target.start_high", "high.safetensors")
    assert (state.value("target.rank"), usual != 4) == (4, True)
    assert state.recommended("target.rank") == (4, "The rank of the LoRA that it starts from")
    state.set_value("target.start_low", str(tmp_path / "low.safetensors"))
    job = state.written_job()
    assert (job.target.rank, job.multistage.high.rank, job.multistage.low.rank) == (8, 4, None)
    assert job.target.start_low == "low.safetensors", "below the job file's folder"
    state.set_value("target.rank", 16)
    state.set_value("target.start_low", "gone.safetensors")
    assert state.value("target.rank") == 16, "the user's own stays"
    state.set_value("target.start_high", "")
    state.set_value("target.rank", state.recommended("target.rank")[0])
    assert state.job().target.rank == usual and "target.start_high" not in state.draft.values


def test_merges_come_and_go_by_their_paths(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    assert state.fields("model")[-1] == "model.merge[0].path" and state.draft.is_empty is False
    state.set_value("model.merge[0].path", str(tmp_path / "a.safetensors"))
    state.set_value("model.merge[0].strength", 0.5)
    state.set_value("model.merge[1].path", "b.safetensors")
    assert state.fields("model")[-1] == "model.merge[2].path" and state.changed("model") == 2
    assert [(m.path, m.strength) for m in state.written_job().model.merge] == [
        ("a.safetensors", 0.5),
        ("b.safetensors", 1.0),
    ]
    state.set_value("model.merge[0].path", "")
    assert [m.path for m in state.job().model.merge] == ["b.safetensors"]
    assert state.value("model.merge[1].path") == "b.safetensors", "the form that shows them has not moved"
    state.drop_blank_merges()
    assert state.value("model.merge[0].path") == "b.safetensors" and state.value("model.merge[0].strength") == 1.0
    store = DraftStore(tmp_path / "draft.json")
    store.save(state.draft)
    assert store.load() == state.draft


def test_every_field_is_in_some_form(tmp_path: Path) -> None:
    state = a_state(tmp_path, folders=2)
    state.add_prompt()
    state.set_value("model.merge[0].path", "style.safetensors")
    state.add_layers()
    forms = [path for panel in (*PANELS, "sample.prompts") for path in state.fields(panel)]
    general = {path.replace("[0]", "") for path in forms if "[1]" not in path}
    assert general == set(FIELDS)
    assert all(step_of_field(path) in NAMES for path in forms)
    for path in forms:
        state.recommended(path)
        state.value(path)


def test_tables_of_layers_are_added_changed_and_removed(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    for _ in range(3):
        state.add_layers()
    state.set_value("target.layers[0].match", "ffn")
    state.set_value("target.layers[1].rank", 4)
    state.set_value("target.layers[2].lr_factor", 0.5)
    state.set_typed("target.layers[2].rank", "many")
    assert state.changed("target") == 4 and state.placeholder("target.layers[0].rank") == "left out: 16"
    state.remove_layers(0)
    assert [(t.match, t.rank, t.lr_factor) for t in state.job().target.layers] == [
        ("blocks.0-19", 4, None),
        ("blocks.0-19", None, 0.5),
    ]
    assert state.draft.typed == {"target.layers[1].rank": "many"}
    state.set_value("target.exclude", ["attn2"])
    text = dump_job(state.written_job())
    assert parse_job(text).target == state.job().target and "[[target.layers]]" in text
    store = DraftStore(tmp_path / "draft.json")
    store.save(state.draft)
    assert store.load() == state.draft


def test_an_empty_field_says_what_it_follows(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    state.add_prompt()
    state.add_prompt()
    state.set_value("target.rank", 24)
    state.set_value("sample.seed", 7)
    state.set_value("sample.prompts[0].width", 320)
    state.set_value("sample.prompts[0].seed", None)
    wanted = {
        "multistage.low.rank": "left out: 24",
        "target.alpha": "left out: 24",
        "sample.prompts[0].seed": "left out: 7",
        "sample.prompts[1].seed": "left out: 8",
        "sample.prompts[0].width": f"left out: {state.job().sample.width}",
        "training.lr": "",
        "sample.steps": "left out: 25",
        "sample.guidance_low": "left out: 4.0",
        "sample.negative": "left out: empty",
    }
    assert {path: state.placeholder(path) for path in wanted} == wanted
    assert (state.job().sample.prompts[0].width, state.job().sample.prompts[0].seed) == (320, None)
    state.set_value("sample.preset", "official")
    state.set_value("sample.guidance", 2.0)
    assert state.placeholder("sample.steps") == "left out: 40" and "色调" in state.placeholder("sample.negative")
    assert state.placeholder("sample.guidance_low") == "left out: 2.0"


def test_findings_lead_to_the_step_of_their_field() -> None:
    wanted = {
        "job.kind": "kind",
        "datasets[0].path": "clips",
        "/clips/a.mp4": "clips",
        "job.trigger": "captions",
        "datasets[1].default_caption": "captions",
        "datasets[0].num_frames": "settings",
        "job.gpus": "settings",
        "sample.prompts[1].ctrl_img": "prompts",
        "sample.prompts": "prompts",
        "sample.width": "settings",
        "save.keep": "settings",
    }
    assert {path: step_of_field(path) for path in wanted} == wanted
    assert position("a step of another version") == 0 and position("review") == len(STEPS) - 1


def test_the_forecast_counts_what_will_be_made(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    state.set_value("model.path", str(make_base(tmp_path / "base")))
    state.set_value("training.steps", 1000)
    state.set_value("save.every", 300)
    state.set_value("sample.every", 250)
    facts = gather(state.job(), tmp_path, out=tmp_path / "runs", machine=state.machine, scenes=False)
    assert "no previews" in forecast(state.job(), facts)[1]
    state.add_prompt()
    state.add_prompt()
    lines = forecast(state.job(), facts)
    assert "1000 steps, 500 for high noise and 500 for low noise" in lines[0] and "seen 500 times" in lines[0]
    assert "4 checkpoints (newest 4 kept)" in lines[1] and "10 previews" in lines[1] and "free" in lines[1]


def test_another_caption_extension_has_the_folder_read_anew(tmp_path: Path) -> None:
    state = a_state(tmp_path, folders=2)
    first, second = state.draft.folders
    state.set_value("datasets[1].caption_extension", ".caption")
    assert first in state.scans and second not in state.scans
    assert state.job().datasets[1].caption_extension == ".caption"


def test_a_change_makes_its_own_panel_anew_and_the_job_is_that_of_all_tables(tmp_path: Path) -> None:
    state = a_state(tmp_path)
    before = state.job()
    for path, value in (("training.steps", 77), ("datasets[0].num_frames", 21), ("target.alpha", 3.0)):
        state.set_value(path, value)
        after = state.job()
        panel = path.partition(".")[0].partition("[")[0]
        assert after == job_from_dict(state._tables()) and get_value(after, path) == value
        assert after.sample is before.sample and getattr(after, panel) is not getattr(before, panel)
    state.draft.values["training.steps"] = "many"
    with pytest.raises(JobError, match=r"training\.steps"):
        state.job()
    state.draft.values.pop("training.steps")
    assert state.job() == job_from_dict(state._tables())
