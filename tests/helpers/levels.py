"""Which level a test is of. It is found from what the test can reach, so that nobody marks tests by hand and `unit`
stays what it says.

A test is looked through together with its fixtures: the names in its code, and in the tests' own functions and classes
that it names. What hides from that (a start deep within the product, a name in a string) is caught as it runs, and told
with the mark to write. Only what is long for its amount of work alone is marked by hand.
"""

import functools
import sys
import types
from collections.abc import Iterator, Set
from typing import Any

import pytest

LEVELS = {
    "unit": "computes within this process, for a second or two",
    "process": "starts processes (commands, daemons, terminals, workers, compilers), trains, or takes many seconds",
    "torture": "trains again and again, killed and starved at one place after another",
}
# names that start a process, or a training
STARTS = {
    "subprocess",
    "pexpect",
    "fork",
    "multiprocessing",
    "run_job",
    "Loader",
    "ensure_running",
    "start_trainer",
    "WanloraApp",
}
AUDITED = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}

_started: list[str] | None = None  # what a unit test has started; None while none runs


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def starts(thing: Any, seen: set[Any], wanted: Set[str] = STARTS) -> bool:
    """Whether a function or a class of the tests, or what it names among them, starts a process or trains: whether it
    reaches one of the names."""
    if isinstance(thing, type):
        return any(
            starts(part, seen, wanted)
            for c in thing.__mro__
            for part in vars(c).values()
            if c.__module__.startswith("tests.")
        )
    function = getattr(thing, "__wrapped__", thing)
    if not isinstance(function, types.FunctionType) or not function.__module__.startswith("tests.") or function in seen:
        return False
    seen.add(function)
    names = set(_names(function.__code__))
    return bool(names & wanted) or any(
        starts(function.__globals__[name], seen, wanted) for name in sorted(names & function.__globals__.keys())
    )


def mark(item: pytest.Function) -> None:
    """Give a test its level, unless it says one itself."""
    if not any(item.get_closest_marker(level) for level in LEVELS):
        item.add_marker("process" if reaches(item, STARTS) else "unit")


def reaches(item: pytest.Function, wanted: Set[str]) -> bool:
    """Whether a test, or one of its fixtures, gets to one of the names."""
    fixtures = [found[-1].func for found in item._fixtureinfo.name2fixturedefs.values()]
    return any(_starts(one, frozenset(wanted)) for one in [item.function, *fixtures])


@functools.cache  # asked three times about each test, and the cases of one have the same code
def _starts(thing: Any, wanted: frozenset[str]) -> bool:
    return starts(thing, set(), wanted)


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event in AUDITED and _started is not None:
        _started.append(f"{event}{args!r:.200}")


sys.addaudithook(_hear)


def watched(item: pytest.Item) -> Iterator[None]:
    """A unit test that starts a process fails, and says what to write."""
    global _started
    _started = [] if item.get_closest_marker("unit") else None
    try:
        result = yield
    finally:
        found, _started = _started, None
    assert not found, f"this starts a process, so it is no unit test: mark it @pytest.mark.process. Started: {found[0]}"
    return result
