"""The cache of packed weights as files. Written and read by engine.weights.weight_cache. No torch.

One file holds the packed blocks of one expert in one precision: MAGIC, 8 bytes header length (little endian), the
header as JSON, then the blocks, each at a multiple of PAGE bytes.
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from presets.caches.cache_files import SUFFIXES, CacheEntry, budget, list_entries, make_room, sweep_unfinished

MAGIC = b"WANLORA1"
PAGE = 4096
SUFFIX = SUFFIXES["weights"]
MAX_HEADER = 16 * 2**20


class CachedTensor(Struct, frozen=True):
    """Where one tensor lies within a block; see engine.weights.packed_blocks.TensorPlace."""

    key: str
    part: int
    dtype: str  # as torch calls it: "float8_e4m3fn"
    shape: tuple[int, ...]
    offset: int


class CacheHeader(Struct, frozen=True, kw_only=True):
    key: str  # hash of everything the blocks depend on; the file's name
    model: str  # folder of the base model
    expert: str
    precision: str
    block_bytes: int
    layout: tuple[CachedTensor, ...]
    hashes: tuple[str, ...]  # blake2b-128 of each block, in hex
    versions: dict[str, str]

    @property
    def stride(self) -> int:
        """Bytes from one block to the next."""
        return -(-self.block_bytes // PAGE) * PAGE

    def begin(self, block: int) -> int:
        """The block's first byte in the file."""
        return -(-(16 + len(msgspec.json.encode(self))) // PAGE) * PAGE + block * self.stride

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.begin(len(self.hashes))

    @property
    def start(self) -> bytes:
        """What stands before the first block, padding included."""
        text = msgspec.json.encode(self)
        return (MAGIC + len(text).to_bytes(8, "little") + text).ljust(self.begin(0), b"\0")


def read_cache_header(path: Path) -> CacheHeader | None:
    """None when the file is no whole cache file. Raises OSError."""
    with path.open("rb") as f:
        start = f.read(16)
        length = int.from_bytes(start[8:], "little")
        if start[:8] != MAGIC or length > MAX_HEADER:
            return None
        try:
            header = msgspec.json.decode(f.read(length), type=CacheHeader)
        except (msgspec.DecodeError, RecursionError):
            return None
    return header if path.stat().st_size == header.size else None


def list_cache(folder: Path) -> list[CacheEntry[CacheHeader]]:
    """What the cache holds, last used first."""
    return list_entries(folder, SUFFIX, read_cache_header)


def make_room_for(header: CacheHeader, folder: Path, cap: int) -> bool:
    """Delete what was used longest ago until the new file fits. False when it cannot: then nothing is deleted.

    The other expert of the same model and precision stays, or the two would push each other out at every start.
    """
    sweep_unfinished(folder)
    entries = list_cache(folder)
    own = sum(e.size for e in entries)

    def sibling(e: CacheEntry[CacheHeader]) -> bool:
        return (
            e.about is not None
            and (e.about.model, e.about.precision) == (header.model, header.precision)
            and e.about.expert != header.expert
        )

    old = {e.path: e.size for e in reversed(entries) if not sibling(e)}
    return make_room(old, own + header.size - budget(folder, cap, own)) is not None
