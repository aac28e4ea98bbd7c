import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.interface.harness import own_daemon, short_dir
from tests.helpers.sshd import OtherMachine, other_machine


@pytest.fixture(scope="package")
def daemon() -> Iterator[Path]:
    """The directory of a daemon that runs."""
    with own_daemon() as folder:
        yield folder


@pytest.fixture
def there(daemon: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherMachine]:
    """Another machine, which this process and those that it starts reach as `ssh box`. Its daemon runs."""
    yield from reached(daemon, monkeypatch)


@pytest.fixture
def lonely(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherMachine]:
    """The same where no daemon runs."""
    yield from reached(None, monkeypatch)


def reached(daemon_dir: Path | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherMachine]:
    folder = short_dir()
    try:
        with other_machine(folder, daemon_dir) as machine:
            monkeypatch.setenv("PATH", f"{machine.tools}:{os.environ['PATH']}")
            yield machine
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where this machine's user keeps what is known of others."""
    return tmp_path / "state"
