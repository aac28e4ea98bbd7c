"""Opening a folder where there is a desktop, and only there."""

import os
import sys
from pathlib import Path

import pytest

from tests.helpers.waiting import until
from wanlora_tui.terminal.desktop import can_open, open_folder


@pytest.fixture
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A desktop whose opener writes down what it was asked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / ("open" if sys.platform == "darwin" else "xdg-open")
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/asked.tmp; mv {tmp_path}/asked.tmp {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":0")
    for name in ("SSH_CONNECTION", "SSH_TTY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "asked"


@pytest.mark.process
def test_the_folder_is_shown(opener: Path, tmp_path: Path):
    folder = tmp_path / "a run; with $signs"
    folder.mkdir()
    assert can_open() and open_folder(folder) == ""
    until(opener.exists, "the file manager")
    assert opener.read_text() == str(folder)


def test_a_folder_that_is_not_there_is_said(opener: Path, tmp_path: Path):
    assert "no folder" in open_folder(tmp_path / "gone")


def test_over_ssh_and_without_a_desktop_it_is_not_offered(opener: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4 5 6.7.8.9 22")
    assert not can_open()
    monkeypatch.delenv("SSH_CONNECTION")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not can_open()
