"""Cases of a test that `make test` leaves out, because others of their kind show the same."""

import pytest
from _pytest.mark import ParameterSet


def thorough(*values: object) -> list[ParameterSet]:
    """Each value as a case of `make thorough` alone."""
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]
