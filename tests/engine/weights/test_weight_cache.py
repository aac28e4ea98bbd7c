"""The cache of packed blocks: a second start reads them, anything wrong with the file is a warning, room is made by
age."""

import ctypes
import os
import resource
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.demo.tiny_base import build_tiny
from engine.system import pinned_memory
from engine.system.pinned_memory import HostMemoryRefused
from engine.system.placement import Placement
from engine.weights import weight_cache
from engine.weights.model_files import open_model_files
from engine.weights.weight_cache import cached_blocks
from presets.caches.weight_cache import PAGE, list_cache

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose weights outweigh its biases, so that packing gains something."""
    return build_tiny(tmp_path_factory.mktemp("wide") / "base", heads=1, head_dim=128, layers=3)


class Cache:
    def __init__(self, folder: Path) -> None:
        self.folder, self.warnings = folder, []
        self.texts: set[str] = set()

    def load(self, base: Path, expert="high_noise", precision="float8", **more):
        self.warnings.clear()
        self.texts.clear()
        return cached_blocks(
            open_model_files(base),
            expert,
            precision,
            Placement(CPU, more.pop("dtype", torch.bfloat16), pinned=more.pop("pinned", False)),
            folder=self.folder,
            progress=lambda done, total, text: self.texts.add(text),
            warn=self.warnings.append,
            **more,
        )

    def hits(self, base: Path, *args, **more) -> bool:
        """Whether the blocks came from the cache alone."""
        self.load(base, *args, **more)
        return self.texts == {"reading the weight cache"}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def same(a, b) -> bool:
    return (
        a[1] == b[1]
        and len(a[0]) == len(b[0])
        and all(torch.equal(x, y) for (x, y) in zip(views(*a), views(*b), strict=True))
    )


def views(buffers, layout) -> list[torch.Tensor]:
    """Bytes of every tensor; the gaps between them hold anything."""
    return [b[t.offset : t.offset + t.bytes] for b in buffers for t in layout.tensors]


def test_each_grid_has_a_file_of_its_own(cache, wide):
    """What was packed for an adapter of ours, or by a version that knew no rounding to bf16, serves no published
    one."""
    for grid in ("qint4", "uint4", "uint4-bf16"):
        assert not cache.hits(wide, precision="qint4", grid=grid)
    assert all(cache.hits(wide, precision="qint4", grid=grid) for grid in ("qint4", "uint4", "uint4-bf16"))


@pytest.mark.parametrize("precision", ["float8", "int8", "qfloat8", "qint8", "qint4"])
def test_the_second_load_reads_the_same_blocks(cache, wide, precision):
    first = cache.load(wide, precision=precision)
    assert cache.texts == {"reading blocks", "writing the weight cache"} and cache.warnings == []
    second = cache.load(wide, precision=precision)
    assert cache.texts == {"reading the weight cache"} and cache.warnings == [] and same(first, second)
    (entry,) = list_cache(cache.folder)
    assert (
        entry.about
        and entry.about.expert == "high_noise"
        and entry.about.precision == precision
        and entry.about.model == str(wide)
        and entry.size % PAGE == 0
    )
    assert [p for p in cache.folder.iterdir() if p != entry.path] == []


def test_blocks_are_locked_once_they_are_read(cache, wide, monkeypatch):
    """CUDA's own calls are faked: this one takes down what a buffer holds when it is locked."""
    first = cache.load(wide)
    locked: dict[int, bytes] = {}

    def register(address: int, size: int, flags: int) -> int:
        assert address not in locked
        locked[address] = bytes((ctypes.c_uint8 * size).from_address(address))
        return 0

    cudart = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=lambda address: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(pinned_memory, "_forget_refusal", lambda: None)
    monkeypatch.setattr(pinned_memory, "free_ram", lambda: 2**40)
    second = cache.load(wide, pinned=True)
    assert cache.texts == {"reading the weight cache"} and same(first, second)
    assert locked == {buffer.data_ptr(): buffer.numpy().tobytes() for buffer in second.buffers}
    cudart.cudaHostRegister = lambda *asked: 2
    with pytest.raises(HostMemoryRefused) as refused:
        cache.load(wide, pinned=True)
    assert refused.value.locking and len(list_cache(cache.folder)) == 1, "nothing is wrong with the file"
    monkeypatch.setattr(pinned_memory, "free_ram", lambda: pinned_memory.LEAST + 3 * first.layout.bytes - 1)
    with pytest.raises(HostMemoryRefused) as refused:
        cache.load(wide, pinned=True)
    assert not refused.value.locking and cache.texts == set(), "each block would have had room by itself"


def test_what_the_key_holds(cache, wide, tmp_path):
    cache.load(wide)
    assert cache.hits(wide)
    assert not cache.hits(wide, "low_noise")
    assert not cache.hits(wide, precision="qint8")
    assert not cache.hits(wide, dtype=torch.float32)
    other = Path(shutil.copytree(wide, tmp_path / "other"))
    assert cache.hits(other)  # the same files in another place
    os.utime(other / "transformer" / "diffusion_pytorch_model.safetensors")
    assert not cache.hits(other)


def test_another_way_of_packing_is_another_key(cache, wide, monkeypatch):
    cache.load(wide)
    plain = weight_cache.pack
    monkeypatch.setattr(
        weight_cache, "pack", lambda w, *how: tuple(t + 1 if t.dtype == torch.float32 else t for t in plain(w, *how))
    )
    assert not cache.hits(wide)


def test_what_gains_nothing_is_not_cached(cache, wide, tmp_path):
    cache.load(wide, precision="none", dtype=torch.float32)
    assert cache.texts == {"reading blocks"} and list_cache(cache.folder) == []
    cache.load(wide, precision="none", dtype=torch.bfloat16)  # half of the fp32 source
    assert len(list_cache(cache.folder)) == 1


def damage(path: Path, at: int) -> None:
    with path.open("r+b") as f:
        f.seek(at)
        byte = f.read(1)
        f.seek(at)
        f.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("how", ["first block", "last block", "magic", "header", "short", "empty"])
def test_a_damaged_file_is_made_anew(cache, wide, how):
    first = cache.load(wide)
    (entry,) = list_cache(cache.folder)
    assert entry.about
    layout = first[1]
    tail = max(layout.tensors, key=lambda s: s.offset)
    match how:
        case "first block":
            damage(entry.path, entry.about.begin(0))
        case "last block":
            damage(entry.path, entry.about.begin(2) + tail.offset + tail.bytes - 1)
        case "magic":
            damage(entry.path, 3)
        case "header":
            damage(entry.path, 16)
        case "short":
            os.truncate(entry.path, entry.size - 1)
        case "empty":
            os.truncate(entry.path, 0)
    again = cache.load(wide)
    assert (
        same(first, again)
        and len(cache.warnings) == 1
        and str(entry.path) in cache.warnings[0]
        and "made anew" in cache.warnings[0]
    )
    assert cache.hits(wide) and cache.warnings == []


def test_a_full_disk_is_a_warning(cache, wide):
    """The file size limit of the process stands for the disk's end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        buffers, _ = cache.load(wide)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(buffers) == 3 and len(cache.warnings) == 1 and "could not be written" in cache.warnings[0]
    assert list(cache.folder.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_a_warning(wide, tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    assert len(cache.load(wide)[0]) == 3 and len(cache.warnings) >= 1


def test_the_one_used_longest_ago_gives_way(cache, wide):
    for age, precision in ((300, "qint8"), (200, "qfloat8"), (100, "qint4")):
        cache.load(wide, precision=precision)
        entry = next(e for e in list_cache(cache.folder) if e.about and e.about.precision == precision)
        os.utime(entry.path, (time.time() - age,) * 2)
    cache.hits(wide, precision="qint8")  # used now
    size = sum(e.size for e in list_cache(cache.folder))
    cache.load(wide, precision="float8", cap=size)
    assert {e.about.precision for e in list_cache(cache.folder) if e.about} == {"qint8", "qint4", "float8"}


def test_experts_of_one_model_do_not_push_each_other_out(cache, wide):
    cache.load(wide)
    (entry,) = list_cache(cache.folder)
    cache.load(wide, "low_noise", cap=entry.size + PAGE)
    assert [e.path for e in list_cache(cache.folder)] == [entry.path]
    assert len(cache.warnings) == 1 and "no room" in cache.warnings[0]


def test_leftovers_of_a_dead_writer_are_swept(cache, wide):
    cache.folder.mkdir()
    (cache.folder / ".abc.1.part").write_bytes(b"x")
    cache.load(wide)
    assert [p.suffix for p in cache.folder.iterdir()] == [".blocks"]
