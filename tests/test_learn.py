"""The part of `make learn` that trains nothing: the base's own loss on its own films, by a trainer that is whole and by
each of the broken ones."""

from pathlib import Path

import pytest

from tests import learn
from tests.helpers.tiers import thorough
from tests.learn import BREAKS, BY_LEARNING, KNOWN, known, over, write_known

TOLD = ["conditioning-dropped", "captions-shuffled"]  # make test shows these; the others are for make thorough
FURTHER = [name for name in BREAKS if name not in [*TOLD, *BY_LEARNING]]


@pytest.mark.process  # trainers of a few steps each
@pytest.mark.parametrize("broken", [TOLD, *thorough(FURTHER)], ids=", ".join)
def test_the_base_s_own_loss_is_small_and_that_of_each_broken_trainer_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: list[str]
) -> None:
    monkeypatch.setattr(learn, "KNOWN_STEPS", 6)
    write_known(tmp_path / "known")
    found = {name: known(tmp_path, name) for name in ["", *broken]}
    assert [name for name, losses in found.items() if not over(losses, KNOWN)] == [""], found
