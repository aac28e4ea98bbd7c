"""The other machine of tests/wanlora_tui/remote, with a daemon whose jobs run for as long as their tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.interface.harness import running_daemon
from tests.helpers.sshd import OtherMachine
from tests.wanlora_tui.remote.conftest import lonely as there  # noqa: F401


@pytest.fixture
def box(there: OtherMachine) -> Iterator[OtherMachine]:  # noqa: F811
    """With a daemon and the test trainer."""
    with running_daemon(there.daemon_dir):
        yield there


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The working directory on this machine."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder
