"""Packed blocks on disk, so that the second start reads what the first one made: no conversion, half the bytes or a
quarter.

A cache file is found by a hash of the source's files, the precision and the way this version packs; it is verified
block by block as it is read, and deleted when it is damaged. It is a convenience: whatever goes wrong with it is a
warning. The form of the file, and making room for it: `presets.caches.weight_cache`.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from engine.system.pinned_memory import HostMemoryRefused, buffer_to_lock, host_buffer, lock, require_free
from engine.system.placement import Placement
from engine.system.progress import Progress, Warn
from engine.wan.quantize import Grid, pack
from engine.weights.added_changes import AddedChanges
from engine.weights.load_expert import load_blocks, open_expert
from engine.weights.model_files import ModelFiles, Network
from engine.weights.packed_blocks import Allocate, Layout, PackedBlocks, PackedTensor
from engine.weights.read_behind import ReadBehind, read_in_turn
from engine.weights.read_into import read_into
from presets import VERSION
from presets.caches.cache_files import CAPS, touch, writing
from presets.caches.weight_cache import SUFFIX, CachedTensor, CacheHeader, make_room_for, read_cache_header
from presets.errors import UserError
from presets.job.expert_schedule import Expert
from presets.machine.limits import cores
from presets.text import human

FORMAT = 1
READING = "reading the weight cache"  # as a run's events say it
THREADS = 16  # hashing is what takes longest, about 1 GB/s each
WORTH = 0.9  # a cache file above this share of the source's bytes gains nothing


class _Unusable(Exception):
    """What is wrong with a cache file."""


@dataclass(frozen=True)
class CachedExpert:
    """A cache file that begins as it should."""

    expert: Expert
    path: Path
    header: CacheHeader
    load: Callable[[Placement], PackedBlocks]  # as without the file

    @property
    def bytes(self) -> int:
        return len(self.header.hashes) * self.header.block_bytes


def cached_blocks(
    source: ModelFiles,
    expert: Expert,
    precision: str,
    placement: Placement,
    *,
    folder: Path,
    progress: Progress,
    warn: Warn,
    cap: int = CAPS["weights"],
    grid: Grid = "qint4",
    changes: AddedChanges | None = None,
    allocate: Allocate | None = None,
) -> PackedBlocks:
    """`engine.weights.load_expert.load_blocks` through the cache in `folder`, which is kept below `cap` bytes. Raises
    UserError for what is wrong with the source."""
    part = open_expert(source, expert)
    key = cache_key(part, precision, placement.dtype, grid, changes)
    path = folder / f"{key}{SUFFIX}"
    if (found := _read(path, key, placement, progress=progress, warn=warn, allocate=allocate)) is not None:
        return found
    blocks = load_blocks(
        source, expert, precision, placement, progress=progress, grid=grid, changes=changes, allocate=allocate
    )
    buffers, layout = blocks
    if len(buffers) * layout.bytes < WORTH * sum(
        s.bytes for name, s in part.stored.items() if name.startswith("blocks.")
    ):
        progress(0, len(buffers), "writing the weight cache")
        header = CacheHeader(
            key=key,
            model=str(source.folder),
            expert=expert,
            precision=precision,
            block_bytes=layout.bytes,
            hashes=_hashes(buffers),
            layout=tuple(
                CachedTensor(t.key, t.part, str(t.dtype).removeprefix("torch."), t.shape, t.offset)
                for t in layout.tensors
            ),
            versions={"torch": version("torch"), "wanlora-tui": VERSION},
        )
        _write(path, header, buffers, progress=progress, warn=warn, cap=cap)
    return blocks


def find_cached(
    source: ModelFiles,
    expert: Expert,
    precision: str,
    dtype: torch.dtype,
    *,
    folder: Path,
    load: Callable[[Placement], PackedBlocks],
    grid: Grid = "qint4",
    changes: AddedChanges | None = None,
) -> CachedExpert | None:
    """The file that `cached_blocks` would read, for `read_behind`; `load` is what calls that. None when there is no
    whole one."""
    key = cache_key(open_expert(source, expert), precision, dtype, grid, changes)
    path = folder / f"{key}{SUFFIX}"
    try:
        return CachedExpert(expert, path, _whole_header(path, key), load)
    except (_Unusable, OSError):  # `cached_blocks` says what is wrong with it
        return None


def cache_key(
    part: Network, precision: str, dtype: torch.dtype, grid: Grid = "qint4", changes: AddedChanges | None = None
) -> str:
    """Hash of everything the packed blocks depend on."""
    known = f"{FORMAT}\0{part.name}\0{part.identity()}\0{precision}\0{dtype}\0{_packing(precision, grid)}"
    known += f"\0{changes.identity}" if changes is not None else ""
    return hashlib.blake2b(known.encode(), digest_size=16).hexdigest()


def _packing(precision: str, grid: Grid) -> str:
    """How this version packs: the bytes that a known weight becomes. A cache of another way of packing is not found."""
    known = torch.linspace(-1, 1, 4 * 256).view(4, 256).square().sub(0.3)
    digest = hashlib.blake2b(digest_size=8)
    for t in pack(known, precision, grid):
        digest.update(f"{t.dtype}{tuple(t.shape)}".encode() + t.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hash(buffer: torch.Tensor) -> str:
    return hashlib.blake2b(buffer.numpy().data, digest_size=16).hexdigest()


def _hashes(buffers: Sequence[torch.Tensor]) -> tuple[str, ...]:
    with ThreadPoolExecutor(_threads()) as pool:  # hashing releases the interpreter lock
        return tuple(pool.map(_hash, buffers))


def _threads() -> int:
    return min(THREADS, cores())


def read_behind(
    wanted: Sequence[CachedExpert], placement: Placement, *, progress: Progress, warn: Warn
) -> dict[Expert, PackedBlocks]:
    """The blocks of these experts, which threads begin to read: from the first block of the first to the last of the
    last. Room for all of them is asked for now; what a damaged file lacks is loaded from the source when it is asked
    for, and what cannot be page-locked stays as it is. Raises HostMemoryRefused, UserError."""
    out: dict[Expert, PackedBlocks] = {}
    sequences = []
    if placement.pinned:
        require_free(sum(cached.bytes for cached in wanted))
    locking = _Locking(warn)
    for cached in wanted:
        blocks = ReadBehind(
            len(cached.header.hashes),
            _reader(cached.path, cached.header, placement, locking=locking),
            waiting=partial(_waiting, progress, len(cached.header.hashes)),
            instead=partial(_instead, cached, placement, warn),
        )
        _mark_used(cached.path, warn)
        sequences.append(blocks)
        out[cached.expert] = PackedBlocks(blocks, _layout(cached.header))
    read_in_turn(sequences, _threads())
    return out


def _waiting(progress: Progress, count: int, block: int) -> None:
    progress(block, count, READING)


def _instead(cached: CachedExpert, placement: Placement, warn: Warn, error: Exception) -> Sequence[torch.Tensor]:
    if isinstance(error, (_Unusable, OSError)):
        _refuse(cached.path, error, warn)
    elif not isinstance(error, HostMemoryRefused):  # what else takes memory meanwhile may have let go of it
        raise error
    try:
        return cached.load(placement).buffers
    except HostMemoryRefused as e:
        if not e.locking:
            raise
        warn(unlocked(e))
    return cached.load(replace(placement, pinned=False)).buffers


class _Locking:
    """Page-locks what is read behind, until that is refused: then the rest lies in plain memory."""

    def __init__(self, warn: Warn) -> None:
        self._warn, self._refused, self._lock = warn, False, threading.Lock()

    def __call__(self, buffer: torch.Tensor) -> None:
        if self._refused:
            return
        try:
            lock(buffer)
        except HostMemoryRefused as e:
            with self._lock:
                if not self._refused:
                    self._warn(unlocked(e))
                self._refused = True


def unlocked(refusal: HostMemoryRefused) -> str:
    return f"{refusal.what}. The experts lie in plain memory instead, and copies take longer"


def _read(
    path: Path, key: str, placement: Placement, *, progress: Progress, warn: Warn, allocate: Allocate | None
) -> PackedBlocks | None:
    """The blocks, read and verified by several threads. None when there is no such file, or when it was damaged, which
    is a warning."""
    try:
        header = _whole_header(path, key)
        buffers = list(_verified(path, header, placement, progress=progress, allocate=allocate))
    except FileNotFoundError:
        return None
    except (_Unusable, OSError) as e:
        _refuse(path, e, warn)
        return None
    _mark_used(path, warn)
    return PackedBlocks(buffers, _layout(header))


def _whole_header(path: Path, key: str) -> CacheHeader:
    header = read_cache_header(path)
    if header is None or header.key != key:
        raise _Unusable("it is not whole")
    return header


def _layout(header: CacheHeader) -> Layout:
    tensors = tuple(PackedTensor(t.key, t.part, getattr(torch, t.dtype), t.shape, t.offset) for t in header.layout)
    return Layout(tensors, header.block_bytes)


def _refuse(path: Path, error: Exception, warn: Warn) -> None:
    warn(f"the weight cache {path} cannot be used and is made anew: {error}")
    _delete(path, warn)


def _mark_used(path: Path, warn: Warn) -> None:
    try:
        touch(path)
    except OSError as e:
        warn(f"the weight cache {path} could not be marked as used: {e.strerror or e}")


def _reader(
    path: Path,
    header: CacheHeader,
    placement: Placement,
    *,
    allocate: Allocate | None = None,
    locking: Callable[[torch.Tensor], None] = lock,
) -> Callable[[int], torch.Tensor]:
    """Reads a block and verifies it, in any thread; then page-locks it by `locking` where the placement says so and
    `allocate` has not made its memory."""
    pinned, device = placement.pinned, placement.device
    gpu = torch.cuda.current_device() if pinned and device.index is None else device.index

    def read(block: int) -> torch.Tensor:
        size = header.block_bytes
        if pinned:  # a new thread would lock memory through the first GPU, whichever this run has
            torch.cuda.set_device(gpu)
        if allocate is not None:
            buffer = allocate(block, size)
        else:
            buffer = buffer_to_lock(size) if pinned else host_buffer(size, pinned=False)
        try:
            read_into(path, header.begin(block), buffer)
        except UserError as e:
            raise _Unusable(e.what) from None
        if _hash(buffer) != header.hashes[block]:
            raise _Unusable(f"block {block} is not what was written")
        if pinned and allocate is None:
            locking(buffer)
        return buffer

    return read


def _verified(
    path: Path, header: CacheHeader, placement: Placement, *, progress: Progress, allocate: Allocate | None
) -> Iterator[torch.Tensor]:
    count = len(header.hashes)
    if placement.pinned and allocate is None:
        require_free(count * header.block_bytes)  # threads that ask at the same time do not see each other's
    pool = ThreadPoolExecutor(_threads(), thread_name_prefix="cache")
    try:
        for block, buffer in enumerate(pool.map(_reader(path, header, placement, allocate=allocate), range(count))):
            progress(block, count, READING)
            yield buffer
    finally:
        pool.shutdown(cancel_futures=True)
    progress(count, count, READING)


def _write(
    path: Path, header: CacheHeader, buffers: Sequence[torch.Tensor], *, progress: Progress, warn: Warn, cap: int
) -> None:
    """Whole and on the disk, or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not make_room_for(header, path.parent, cap):
            warn(
                f"the weight cache has no room for {human(header.size)} in {path.parent}, so the next start takes as"
                " long as this one"
            )
            return
        with writing(path) as f:
            f.write(header.start)
            for block, buffer in enumerate(buffers):
                progress(block, len(buffers), "writing the weight cache")
                f.seek(header.begin(block))
                f.write(buffer.numpy().data)
            f.truncate(header.size)
            f.flush()
            os.fsync(f.fileno())
        progress(len(buffers), len(buffers), "writing the weight cache")
    except OSError as e:
        warn(
            f"the weight cache could not be written ({(e.strerror or str(e)).lower()}), so the next start takes as long"
            " as this one"
        )


def _delete(path: Path, warn: Warn) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        warn(f"{path} could not be deleted: {e.strerror or e}")
