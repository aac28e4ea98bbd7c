"""Previews made of clips in a draft, and clips that are held out of training for them."""

from pathlib import Path

from presets.clips.clip_facts import scan_dataset
from presets.job.schema import DatasetPanel, PromptPanel
from presets.job.toml_file import load_job, save_job
from tests.helpers.facts import gpu, machine
from tests.helpers.interface.wizard_pilot import make_clips
from wanlora_tui.draft.clip_previews import add_clip_prompts, clip_of, hold_out, is_held_out
from wanlora_tui.draft.draft_store import Draft
from wanlora_tui.draft.job_draft import WizardState


def a_state(tmp_path: Path) -> WizardState:
    state = WizardState(Draft(kind="motion"), tmp_path)
    state.machine = machine(gpu(80))
    for i, folder in enumerate((make_clips(tmp_path / "one", 2), make_clips(tmp_path / "two", 2))):
        assert state.add_folder(folder) == ""
        state.scans[str(folder)] = scan_dataset(DatasetPanel(path=str(folder)), i, tmp_path)
    state.refresh()
    return state


def test_two_then_one_more_until_no_clip_is_left(tmp_path: Path):
    state = a_state(tmp_path)
    assert [add_clip_prompts(state) for _ in range(4)] == [2, 1, 1, 0]
    images = [Path(p.ctrl_img) for p in state.draft.prompts]
    assert [p.parent.name for p in images[:2]] == ["one", "two"] and len(set(images)) == 4
    assert all(p.prompt for p in state.draft.prompts)
    assert [Path(p.ctrl_img) for p in state.written_job().sample.prompts] == [p.relative_to(tmp_path) for p in images]


def test_a_clip_is_held_out_and_taken_in_again(tmp_path: Path):
    state = a_state(tmp_path)
    add_clip_prompts(state)
    place = clip_of(state, 1)
    assert place is not None and place[0] == 1 and not is_held_out(state, 1)
    assert hold_out(state, 1) and is_held_out(state, 1) and not is_held_out(state, 0)
    assert state.job().datasets[1].exclude == [place[1]] and state.job().datasets[0].exclude == []
    found = state.found(1)
    assert found is not None and [Path(c.path).name for c in found.clips] == [
        name for name in ("clip_00.mp4", "clip_01.mp4") if name != place[1]
    ]
    save_job(state.written_job(), tmp_path / "job.toml")
    job = load_job(tmp_path / "job.toml")
    assert len(scan_dataset(job.datasets[1], 1, tmp_path).clips) == 1
    assert hold_out(state, 1) and not is_held_out(state, 1) and "datasets[1].exclude" not in state.draft.values
    state.draft.prompts.append(PromptPanel(prompt="a", ctrl_img="elsewhere.png"))
    assert clip_of(state, 2) is None and not hold_out(state, 2)
    state.draft.prompts[2].ctrl_img = "~nobody-of-this-name/clip.png"
    assert clip_of(state, 2) is None
