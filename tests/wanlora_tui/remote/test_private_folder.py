import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from wanlora_tui.remote import private_folder as module
from wanlora_tui.remote.private_folder import LOCK, PREFIX, private_folder


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "spare_parent", lambda: tmp_path)
    return tmp_path


def test_it_is_private_and_goes_at_the_end(parent: Path):
    with private_folder() as folder:
        assert folder.parent == parent and folder.stat().st_mode & 0o777 == 0o700
        (folder / "more").mkdir()
    assert list(parent.iterdir()) == []


def test_that_of_a_living_owner_is_left_alone():
    with private_folder() as one, private_folder() as other:
        assert one.exists() and other.exists()


@pytest.mark.process
def test_that_of_a_killed_owner_goes_at_the_next_start(parent: Path):
    code = (
        "import os, pathlib, sys\nfrom wanlora_tui.remote import private_folder as m\n"
        "m.spare_parent = lambda: pathlib.Path(sys.argv[1])\n"
        "with m.private_folder() as f: print(f, flush=True); os.kill(os.getpid(), 9)"
    )
    said = subprocess.run([sys.executable, "-c", code, parent], cwd=ROOT, capture_output=True, text=True, check=False)
    left = Path(said.stdout.strip())
    assert left.exists() and left.parent == parent, said.stderr
    with private_folder():
        assert not left.exists()


def test_what_is_not_surely_ours_is_left_alone(parent: Path):
    """One that is being made has no lock yet, a link may lead anywhere, and others may write to an open one."""
    made, opened, aim = parent / f"{PREFIX}a", parent / f"{PREFIX}b", parent / "aim"
    for folder in (made, opened, aim):
        folder.mkdir(mode=0o700)
    opened.chmod(0o777)
    for folder in (opened, aim):
        (folder / LOCK).touch()
    (parent / f"{PREFIX}c").symlink_to(aim)
    with private_folder():
        assert made.exists() and opened.exists() and (aim / LOCK).exists()
    assert os.path.lexists(parent / f"{PREFIX}c")
