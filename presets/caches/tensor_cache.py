"""The caches of latents and of text embeddings as files. Written and read by engine.encode.tensor_cache. No torch.

One safetensors file per entry: the tensor `x`, and in the metadata its key (also the file's name), the hash of its
bytes and what it is, in words.
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from presets.caches.cache_files import SUFFIXES, CacheEntry, list_entries

ENTRY = SUFFIXES["latents"]


def read_about(path: Path) -> str | None:
    """What an entry is; None when the file is damaged. Raises OSError."""
    try:
        with safe_open(path, "np") as f:
            written = f.metadata() or {}
    except SafetensorError:
        return None
    return written.get("about") if written.get("key") == path.stem else None


def list_tensors(folder: Path) -> list[CacheEntry[str]]:
    """What a cache holds, last used first."""
    return list_entries(folder, ENTRY, read_about)
