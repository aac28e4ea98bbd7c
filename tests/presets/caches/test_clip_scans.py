"""What the look at every frame found is kept across processes, and never for another content, or for a damaged clip."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from presets.caches.clip_scans import Identity, forget_scans, identity_of, keep_cuts, known_cuts, scans_file
from tests.helpers.videos import write_clip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cuts_of_a_file_are_kept_until_it_changes(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    clip.write_bytes(b"x" * 10)
    file = identity_of(str(clip))
    assert known_cuts(file) is None
    keep_cuts(file, [3, 40])
    assert known_cuts(identity_of(str(clip))) == [3, 40]
    for other in (
        Identity(file.path, file.size, file.mtime + 1),
        Identity(file.path, file.size + 1, file.mtime),
        Identity(file.path + "x", file.size, file.mtime),
    ):
        assert known_cuts(other) is None
    clip.write_bytes(b"y" * 11)
    keep_cuts(identity_of(str(clip)), [])
    assert known_cuts(identity_of(str(clip))) == [] and known_cuts(file) is None
    forget_scans()
    assert known_cuts(identity_of(str(clip))) is None
    forget_scans()


def test_a_cache_that_is_damaged_is_begun_anew(tmp_path: Path, cache: Path) -> None:
    file = Identity("/a.mp4", 1, 2)
    scans_file().parent.mkdir(parents=True)
    scans_file().write_bytes(b"no table" * 1000)
    assert known_cuts(file) is None
    keep_cuts(file, [1])
    keep_cuts(file, [1])
    assert known_cuts(file) == [1]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, cache: Path) -> None:
    cache.write_bytes(b"a file where the folder should be")
    keep_cuts(Identity("/a.mp4", 1, 2), [1])
    assert known_cuts(Identity("/a.mp4", 1, 2)) is None


LOOK = """
    import sys
    from pathlib import Path
    import presets.facts.gather as gathering
    from presets.job.toml_file import parse_job
    seen = []
    real = gathering.find_cuts
    gathering.find_cuts = lambda path, *more: (seen.append(path.name), real(path, *more))[1]
    job = parse_job('[job]\\nname = "a"\\n[[datasets]]\\npath = "clips"\\nnum_frames = 5\\n')
    facts = gathering.gather(job, Path(sys.argv[1]), out=Path(sys.argv[1]))
    print(sorted(seen), [f.code for d in facts.datasets for f in d.problems])
"""


@pytest.mark.process
def test_another_process_decodes_what_is_new_or_was_damaged(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a", "b"):
        write_clip(tmp_path / "clips" / f"{name}.mp4", frames=24)
    bad = write_clip(tmp_path / "clips" / "bad.mkv", frames=24, codec="ffv1")
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)

    def look() -> str:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(LOOK), str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ),
        ).stdout.strip()

    assert look() == "['a.mp4', 'b.mp4', 'bad.mkv'] ['clip-unreadable']"
    assert look() == "['bad.mkv'] ['clip-unreadable']"
    write_clip(tmp_path / "clips" / "b.mp4", frames=30)
    bad.unlink()
    assert look() == "['b.mp4'] []"
    assert look() == "[] []"
