"""What several tests of the wizard stand on."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.interface.harness import end_daemon, short_dir


@pytest.fixture
def folder() -> Iterator[Path]:
    """The daemon's directory, without a daemon; what is started there is ended with the test."""
    place = short_dir()
    try:
        yield place
        end_daemon(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
