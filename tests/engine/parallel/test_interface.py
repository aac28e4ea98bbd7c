"""gloo uses the interface that leads to the other hosts. With machines apart: test_machines."""

import os
from collections.abc import Iterator

import psutil
import pytest
import torch.distributed as dist

from engine.parallel.interface import GLOO, choose_interface
from engine.parallel.parts import Rank


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GLOO, "")  # to be put back afterwards
    monkeypatch.delenv(GLOO)


@pytest.fixture
def outer() -> Iterator[tuple[str, str]]:
    """An interface of this machine that is not loopback, and an address of it."""
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family.name == "AF_INET" and not one.address.startswith("127."):
                yield name, one.address
                return
    pytest.skip("this machine has no network")


def chosen(first: str, other: str) -> str | None:
    """By the first of two ranks; the other is reached at an address."""
    store = dist.HashStore()
    store.set("wanlora/reached/1", other)
    choose_interface(store, Rank(0, 2, 0, 1), first)
    return os.environ.get(GLOO)


def test_it_is_the_one_that_leads_to_the_first_host(outer: tuple[str, str]):
    assert chosen(outer[1], "") == outer[0]


def test_where_the_first_host_s_name_leads_to_loopback_it_is_the_one_that_leads_to_another(outer: tuple[str, str]):
    assert chosen("127.0.0.1", outer[1]) == outer[0]


def test_hosts_that_are_all_one_machine_use_loopback():
    assert chosen("127.0.0.1", "127.0.0.1") == "lo"


def test_what_somebody_has_chosen_stays(outer: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(GLOO, "eth7")
    assert chosen(outer[1], "") == "eth7"
