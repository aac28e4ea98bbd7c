"""The card is opened by the driver itself, which is faked here."""

import ctypes

import pytest

from engine.system import wake_card
from tests.helpers.waiting import PATIENCE


class Driver:
    def __init__(self, code: int) -> None:
        self.code, self.opened = code, []

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDeviceGet(self, card, number: int) -> int:
        card._obj.value = 7 + number
        return 0

    def cuDevicePrimaryCtxRetain(self, context, card) -> int:
        self.opened.append(card.value)
        return 0


def woken() -> None:
    thread = wake_card.wake_card()
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize(("code", "opened"), [(0, [7]), (100, [])], ids=["a card", "no card"])
def test_the_first_card_is_opened_while_others_go_on(monkeypatch, code, opened):
    driver, asked = Driver(code), []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: asked.append(name) or driver)
    woken()
    assert driver.opened == opened and asked == ["libcuda.so.1"]


def test_no_driver_is_no_error(monkeypatch):
    monkeypatch.setattr(wake_card, "DRIVER", "libcuda-of-no-machine.so")
    woken()
