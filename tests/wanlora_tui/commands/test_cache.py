"""`wanlora cache` in a process of its own, over cache files made by hand: no torch anywhere."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from presets.caches.cache_files import budget, clear_cache
from presets.caches.weight_cache import PAGE, SUFFIX, CachedTensor, CacheHeader, list_cache, make_room_for
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, wanlora


def header(
    key: str, *, expert: str = "high_noise", precision: str = "float8", model: str = "/models/wan", blocks: int = 2
) -> CacheHeader:
    return CacheHeader(
        key=key,
        model=model,
        expert=expert,
        precision=precision,
        block_bytes=5000,
        hashes=("0" * 32,) * blocks,
        layout=(CachedTensor("a", 0, "float8_e4m3fn", (50, 100), 0),),
        versions={"torch": "2.13.0"},
    )


def write(folder: Path, made: CacheHeader, *, age: float = 0.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{made.key}.blocks"
    path.write_bytes(made.start.ljust(made.size, b"\1"))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def home(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """(the cache folder, the environment that leads to it)."""
    return tmp_path / "wanlora" / "weights", environment(XDG_CACHE_HOME=str(tmp_path))


def test_an_empty_cache(home):
    folder, env = home
    said = wanlora("cache", env=env)
    assert said.returncode == 0 and said.stdout == "" and said.stderr.count("is empty") == 3 and not folder.exists()
    assert wanlora("cache", "path", "weights", env=env).stdout == f"{folder}\n"
    assert wanlora("cache", "path", env=env).stdout == f"{folder.parent}\n"
    assert wanlora("cache", "clear", env=env).returncode == 0
    assert json.loads(wanlora("cache", "list", "--json", env=env).stdout) == []


def test_list_and_clear(home):
    folder, env = home
    old, new = write(folder, header("aa"), age=7200), write(folder, header("bb", expert="low_noise", precision="qint4"))
    (folder / "cc.blocks").write_bytes(b"no cache file")
    said = wanlora("cache", "list", env=env)
    lines = said.stdout.splitlines()
    assert len(lines) == 4 and lines[0].split() == ["CACHE", "SIZE", "USED", "WHAT"]
    assert "2h 00m ago" in lines[3] and "float8" in lines[3] and "high noise" in lines[3] and "/models/wan" in lines[3]
    assert (
        sum("damaged" in line for line in lines) == 1
        and "Packed weights: " in said.stderr
        and "of at most" in said.stderr
    )
    rows = json.loads(wanlora("cache", "list", "--json", env=env).stdout)
    assert {r["path"]: r["damaged"] for r in rows} == {
        str(old): False,
        str(new): False,
        str(folder / "cc.blocks"): True,
    }
    assert next(r for r in rows if r["path"] == str(new))["precision"] == "qint4"
    said = wanlora("cache", "clear", env=env)
    assert said.returncode == 0 and "Freed" in said.stderr and list(folder.iterdir()) == []


def entry(folder: Path, key: str, about: str) -> Path:
    """As the engine writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps(
        {
            "__metadata__": {"key": key, "hash": "0", "about": about},
            "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        }
    ).encode()
    (folder / f"{key}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\1" * 8)
    return folder / f"{key}.safetensors"


def test_latents_and_texts_are_listed_and_cleared_apart(home):
    folder, env = home
    weights, latents, texts = folder, folder.parent / "latents", folder.parent / "texts"
    write(weights, header("aa"))
    picture, text = entry(latents, "bb", "/pictures/a.png 512x512"), entry(texts, "cc", "a red ball")
    (latents / "dd.safetensors").write_bytes(b"nothing")
    torn = entry(latents, "ee", "/pictures/b.png 512x512")
    torn.write_bytes(torn.read_bytes()[:-1])
    lines = wanlora("cache", env=env).stdout.splitlines()
    assert (
        [line.split()[0] for line in lines] == ["CACHE", "weights", "latents", "texts"]
        and "3 images, 2 damaged" in lines[2]
        and "1 text" in lines[3]
    )
    lines = wanlora("cache", "list", "latents", env=env).stdout.splitlines()
    assert (
        len(lines) == 4
        and sum("/pictures/a.png 512x512" in line for line in lines) == 1
        and sum("damaged" in line for line in lines) == 2
    )
    rows = json.loads(wanlora("cache", "list", "--json", env=env).stdout)
    assert {r["path"]: (r["kind"], r.get("about"), r["damaged"]) for r in rows if r["kind"] != "weights"} == {
        str(picture): ("latents", "/pictures/a.png 512x512", False),
        str(latents / "dd.safetensors"): ("latents", "", True),
        str(torn): ("latents", "", True),
        str(text): ("texts", "a red ball", False),
    }
    assert wanlora("cache", "clear", "latents", env=env).returncode == 0
    assert list(latents.iterdir()) == [] and text.exists() and list(weights.iterdir())
    assert wanlora("cache", "clear", "nonsense", env=env).returncode == 2
    assert wanlora("cache", "clear", env=env).returncode == 0 and not text.exists() and list(weights.iterdir()) == []


def test_what_cannot_be_deleted_is_told(home):
    folder, env = home
    write(folder, header("aa"))
    (folder / "aa.blocks").unlink()
    (folder / "aa.blocks").mkdir()  # whoever made it: not a file that unlink takes, not even for root
    said = wanlora("cache", "clear", env=env)
    assert said.returncode == 1 and "cannot be deleted" in said.stderr and "Traceback" not in said.stderr


def test_no_torch_in_the_command():
    code = (
        "import sys; import wanlora_tui.commands.cache; print([m for m in ('torch', 'numpy', 'textual') if m in"
        " sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_a_header_finds_its_way_back(tmp_path):
    made = header("aa", blocks=3)
    path = write(tmp_path, made)
    (entry,) = list_cache(tmp_path)
    assert (
        entry.about == made
        and entry.size == made.size == made.begin(3)
        and made.begin(0) % PAGE == 0
        and made.stride == 2 * PAGE
    )
    assert path.read_bytes()[made.begin(0) - 1 : made.begin(0) + 1] == b"\0\1"


def test_room_is_made_by_age_and_never_at_the_siblings_cost(tmp_path):
    size = header("aa").size
    write(tmp_path, header("aa", precision="qint4"), age=300)
    write(tmp_path, header("bb", model="/models/other"), age=200)
    write(tmp_path, header("cc", expert="low_noise"), age=900)
    assert make_room_for(header("dd"), tmp_path, 3 * size)
    assert {e.path.stem for e in list_cache(tmp_path)} == {"bb", "cc"}
    # the low noise expert of the same model stays, and then nothing is deleted
    assert not make_room_for(header("dd"), tmp_path, size)
    assert {e.path.stem for e in list_cache(tmp_path)} == {"bb", "cc"}
    assert make_room_for(header("dd"), tmp_path, 2 * size)
    assert {e.path.stem for e in list_cache(tmp_path)} == {"cc"}


def test_half_of_the_free_disk_at_most(tmp_path):
    assert budget(tmp_path, 1000, 10) == 1000
    assert 0 < budget(tmp_path, 2**62, 10) < 2**62


def test_a_live_writer_is_not_swept(tmp_path):
    import fcntl

    with (tmp_path / ".aa.1.part").open("wb") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert clear_cache(tmp_path, SUFFIX) == 0 and (tmp_path / ".aa.1.part").exists()
    clear_cache(tmp_path, SUFFIX)
    assert list(tmp_path.iterdir()) == []
