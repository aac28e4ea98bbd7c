"""The checkpoints to go back to: those that are whole, with the losses and previews of their step."""

import json
from pathlib import Path

import pytest

from presets.runs.checkpoints import MEAN_OF, best_text, checkpoints_of
from presets.runs.ranking import Measure
from presets.runs.run_view import Checkpoint, PreviewSet, RunView, StepPoint


def stored(run: Path, step: int, manifest: str | None = None) -> None:
    folder = run / f"checkpoints/step_{step:09d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        manifest
        or json.dumps({"step": step, "files": {"a": {"bytes": 5, "sha256": ""}, "b": {"bytes": 7, "sha256": ""}}})
    )


def test_whole_ones_with_their_losses_and_previews(tmp_path: Path):
    for step in (100, 50):
        stored(tmp_path, step)
    view = RunView(
        losses={"high_noise": [StepPoint(s, float(s)) for s in range(1, 101)], "low_noise": [StepPoint(80, 0.5)]},
        samples=[PreviewSet(100, "samples/x/00.mp4", "", "", 1), PreviewSet(50, "y", "", "", 1)],
    )
    old, new = checkpoints_of(tmp_path, view)
    assert (old.step, old.size, old.path, old.previews) == (50, 12, "checkpoints/step_000000050", ["y"])
    assert old.losses == {"high_noise": pytest.approx(sum(range(51 - MEAN_OF, 51)) / MEAN_OF)}
    assert new.losses == {
        "high_noise": pytest.approx(sum(range(101 - MEAN_OF, 101)) / MEAN_OF),
        "low_noise": 0.5,
    } and new.previews == ["samples/x/00.mp4"]


def measured(step: int, *losses: float) -> Measure:
    return Measure(step=step, losses={"high_noise": [*losses]})


def test_what_the_held_out_loss_says_of_each(tmp_path: Path):
    for step in (10, 20, 30, 40):
        stored(tmp_path, step)
    view = RunView(
        checkpoints=[Checkpoint(s, "") for s in (10, 20, 30, 40)],
        measured=[
            measured(0, 1.0, 2.0, 3.0),
            measured(10, 0.50, 1.50, 2.50),
            measured(20, 0.40, 1.41, 2.40),
            measured(30, 0.60, 1.61, 2.61),
        ],
    )
    found = checkpoints_of(tmp_path, view)
    assert [c.verdict for c in found] == ["worse", "best", "worse", ""]
    assert [c.held_out and round(c.held_out, 3) for c in found] == [1.5, 1.403, 1.607, None]
    assert found[0].against == 20 and found[0].why.startswith("+0.097, ") and "later ones overfit" in found[1].why
    assert best_text(found).startswith("best: step 20; later ones overfit (step 30: +0.2")
    assert best_text(found[2:]).startswith("best: step 20, of which the LoRA files stay; step 30: +0.2")
    assert best_text(checkpoints_of(tmp_path, RunView())) == ""


def test_what_is_gone_is_not_the_best(tmp_path: Path):
    """A rollback to step 20 went back behind what had made step 10 one to be pruned. Its LoRA files, when they stay,
    can be used."""
    stored(tmp_path, 20)
    view = RunView(
        name="orbit",
        measured=[measured(10, 0.1, 0.2, 0.3), measured(20, 0.4, 0.5, 0.61)],
        checkpoints=[Checkpoint(step, "") for step in (10, 20)],
    )
    assert best_text(checkpoints_of(tmp_path, view)).startswith("best: step 20; yet worse than step 10")
    (tmp_path / "orbit_000000010_low_noise.safetensors").touch()
    assert best_text(checkpoints_of(tmp_path, view)).startswith("best: step 10, of which the LoRA files stay")


@pytest.mark.parametrize(
    "manifest", ["", "{", "[]", '{"files": 3}', '{"files": {"a": {}}}', '{"files": {"a": {"bytes": "many"}}}']
)
def test_half_written_and_damaged_ones_are_left_out(tmp_path: Path, manifest: str):
    stored(tmp_path, 10, manifest or " ")
    (tmp_path / "checkpoints/step_000000020").mkdir()
    stored(tmp_path, 30)
    (tmp_path / "checkpoints/step_000000040.tmp-7").mkdir()
    assert [c.step for c in checkpoints_of(tmp_path, RunView())] == [30]


def test_a_run_without_any(tmp_path: Path):
    assert checkpoints_of(tmp_path, RunView()) == []
