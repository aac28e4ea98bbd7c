"""What the steps say about themselves, whichever machine they are shown on."""

import pytest

from wanlora_tui.draft.steps import STEPS, Step


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_hint_claims_nothing_of_the_machine(step: Step):
    """It is shown without a GPU too, where there is nothing to set values for."""
    assert "this machine already" not in step.hint and "your GPU" not in step.hint
