"""What is recommended follows the clips that train, and is made once for each of them."""

from pathlib import Path

import pytest

from presets.recipes import recommend as recipes
from tests.helpers.facts import clips, dataset, gpu, machine
from wanlora_tui.draft.draft_store import Draft
from wanlora_tui.draft.job_draft import WizardState


@pytest.fixture
def state(tmp_path: Path) -> WizardState:
    """Two folders, of 12 and 30 clips."""
    state = WizardState(Draft(kind="motion", folders=["/a", "/b"]), tmp_path)
    state.machine = machine(gpu(80))
    state.scans = {"/a": dataset(clips(12)), "/b": dataset(clips(30))}
    state.refresh()
    return state


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of clips of each recommendation that is made."""
    found: list[int] = []
    real = recipes.recommend

    def counted(kind, machine, clips, **names):  # type: ignore[no-untyped-def]
        found.append(len(clips))
        return real(kind, machine, clips, **names)

    monkeypatch.setattr(recipes, "recommend", counted)
    return found


def test_only_what_has_changed_is_recommended_anew(state: WizardState, made: list[int]) -> None:
    before = state.recommended_job()
    state.refresh()
    state.set_value("target.start_high", "/some/lora.safetensors")  # follows from files, not from clips
    assert made == [] and state.recommended_job().datasets == before.datasets
    state.scans["/b"] = dataset(clips(10))
    state.refresh()
    assert sorted(made) == [10, 22], "the other folder's clips are the same"
    state.set_kind("style")
    assert sorted(made[2:]) == [10, 12, 22]


def test_one_folder_is_all_there_is(tmp_path: Path, made: list[int]) -> None:
    state = WizardState(Draft(kind="motion", folders=["/a"]), tmp_path)
    state.machine, state.scans = machine(gpu(80)), {"/a": dataset(clips(12))}
    state.refresh()
    assert made == [12]


def test_what_a_thread_has_recommended_counts_for_the_draft_it_was_asked_for_alone(state: WizardState) -> None:
    assert not state.is_behind
    state.draft.values["datasets[0].exclude"] = ["nothing.mp4"]
    assert state.is_behind
    basis = state.basis()
    assert basis is not None
    answer = state.recommend(basis)
    state.draft.values.pop("datasets[0].exclude")
    assert not state.take(answer), "the draft has changed meanwhile"
    state.draft.values["datasets[0].exclude"] = ["nothing.mp4"]
    basis = state.basis()
    assert basis is not None and state.take(state.recommend(basis)) and not state.is_behind
