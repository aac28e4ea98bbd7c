"""Products in a fixed order, without torch's variable once torch has seen it."""

import os
from typing import Any

import pytest
import torch

from engine.device import CUBLAS_WORKSPACE, products_in_order

NAME, VALUE = CUBLAS_WORKSPACE


class Products:
    """A tensor of a card: its product wants the variable, the first time or every time."""

    def __init__(self, *, every_time: bool) -> None:
        self.every_time, self.seen = every_time, list[Any]()

    def __matmul__(self, other: object) -> None:
        assert torch.are_deterministic_algorithms_enabled()
        self.seen.append(os.environ.get(NAME))
        if os.environ.get(NAME) != VALUE and (self.every_time or len(self.seen) == 1):
            raise RuntimeError("not deterministic because it uses CuBLAS")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Products:
    monkeypatch.setenv(NAME, "restored after the test")
    made = Products(every_time=request.param)
    monkeypatch.setattr(torch, "ones", lambda *size, device: made)
    return made


@pytest.mark.parametrize("products", [False], indirect=True)
def test_the_variable_goes_once_torch_has_seen_it(products):
    products_in_order(torch.device("cpu"))
    assert products.seen == [VALUE, None]
    assert NAME not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("products", [True], indirect=True)
def test_the_variable_stays_for_a_torch_that_asks_every_time(products):
    products_in_order(torch.device("cpu"))
    assert os.environ[NAME] == VALUE
