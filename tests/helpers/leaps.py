"""Clocks that leap ahead at random moments, as they do for a process that was stopped: a plugin of pytest, for tests
that start no other process. It costs no time: thousands of leaps in one run. tests.busy asks for it.

Loaded before all that keeps a clock under a name of its own (`-p tests.helpers.leaps`).
"""

import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.helpers import waiting

EVERY = 0.25  # seconds between two leaps, on average
_ahead = [0]  # nanoseconds; one for all clocks
_leaps = [0]


class _Leaping:
    """A clock; not a function, which would become a method where a class keeps it."""

    def __init__(self, clock: Callable[[], float], unit: float) -> None:
        self._clock, self._unit = clock, unit

    def __call__(self) -> float:
        return self._clock() + type(self._clock())(_ahead[0] * self._unit)


for _name in ("time", "monotonic", "perf_counter"):
    setattr(time, _name, _Leaping(getattr(time, _name), 1e-9))
    setattr(time, f"{_name}_ns", _Leaping(getattr(time, f"{_name}_ns"), 1))
waiting.PATIENCE *= 1000  # by these clocks


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--leap", type=float, default=8.0, metavar="SECONDS")
    parser.addoption("--leap-seed", type=int, default=0)


def pytest_configure(config: pytest.Config) -> None:
    draws, seconds = random.Random(config.option.leap_seed), config.option.leap
    pause = threading.Event()  # of its own clock, which goes on as usual

    def leap() -> None:
        while not pause.wait(draws.expovariate(1 / EVERY)):
            _ahead[0] += round(seconds * 1e9)
            _leaps[0] += 1

    threading.Thread(target=leap, daemon=True, name="leaps").start()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(f"{_leaps[0]} leaps of {config.option.leap:g} s, seed {config.option.leap_seed}")
