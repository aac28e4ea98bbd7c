"""The first steps of each golden curve, replayed. `python -m tests.golden --check` replays all of them to the end."""

import pytest

from tests.golden import CURVES, FIRST, SHORT, STEPS, TOLERANCE, committed, curve, deviation

FURTHER = ("guidance", "ema", "bpp")  # each has its formula's own tests


CASES = [
    *(pytest.param(name, SHORT, marks=pytest.mark.thorough) for name in (*FURTHER, "dop", "regularization")),
    *((name, FIRST.get(name, SHORT)) for name in CURVES if name not in FURTHER),
]


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_a_curve_goes_as_it_went(name, steps, tiny, tmp_path):
    golden = committed(name)
    assert all(len(losses) == STEPS for losses in golden["losses"].values())
    off = deviation(curve(name, steps, tmp_path, tiny), golden)
    assert off <= TOLERANCE, (
        f"{name} is {off:.2g} off: a change of what is learnt. If it is meant, run `make golden` and commit the"
        " difference"
    )


def test_a_changed_curve_is_seen():
    golden = committed("plain")
    changed = {**golden, "losses": {"main": [*golden["losses"]["main"][:-1], golden["losses"]["main"][-1] * 1.01]}}
    assert deviation(golden, golden) == 0 and deviation(changed, golden) > TOLERANCE
