"""Tensors on disk, found by a hash of everything they depend on: latents of images, embeddings of texts.

Every entry is verified as it is read; a damaged one is deleted and made again, with a warning. The cache is a
convenience: whatever goes wrong with it is a warning, given once. What the user sees of it, and how large it may grow,
is presets.caches.tensor_cache's.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from engine.system.placement import Placement
from engine.system.progress import Warn
from presets.caches.cache_files import (
    CALLED,
    CAPS,
    CacheEntry,
    TensorKind,
    budget,
    cache_folder,
    list_entries,
    make_room,
    sweep_unfinished,
    touch,
    writing,
)
from presets.caches.tensor_cache import ENTRY
from presets.text import human

PACKAGES = ("torch", "diffusers", "transformers")  # what computes the entries: another version may round in another way


def machinery(placement: Placement) -> str:
    """What a result's last bits depend on besides its inputs: the kind of card, the type, the libraries."""
    device = placement.device
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return "\0".join([card, str(placement.dtype), *(f"{name} {version(name)}" for name in PACKAGES)])


def key_of(*parts: object) -> str:
    """Hash of what an entry depends on; also its file's name."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()


class TensorCache:
    """Entries of one kind. What this run has used is never pushed out by what it adds; everything else goes by age."""

    def __init__(self, kind: TensorKind, *, warn: Warn, folder: Path | None = None, cap: int | None = None) -> None:
        self.folder = cache_folder(kind) if folder is None else folder
        self._name, self._cap, self.warn = CALLED[kind], CAPS[kind] if cap is None else cap, warn
        self._used: set[str] = set()  # keys
        self._sizes: dict[str, int] | None = None  # bytes by key, oldest first; read when first written to
        self._full = False

    def get(self, key: str) -> torch.Tensor | None:
        """The tensor, on the CPU. None when it is not there, or was damaged (then with a warning)."""
        path = self._path(key)
        try:
            with safe_open(path, "pt") as f:
                about, x = f.metadata() or {}, f.get_tensor("x").clone()
            if about.get("key") != key or about.get("hash") != _hash(x):
                raise SafetensorError("it is not what was written")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as e:
            self.warn(f"an entry of the cache of {self._name} cannot be used and is made again: {path}: {e}")
            self._delete(path)
            return None
        self._used.add(key)
        try:
            touch(path)
        except OSError as e:
            self.warn(f"{path} could not be marked as used: {e.strerror or e}")
        return x

    def put(self, key: str, x: torch.Tensor, about: str) -> bool:
        """Keep a tensor. False when it could not be."""
        if self._full:
            return False
        x = x.detach().cpu().contiguous()
        content = save({"x": x}, {"key": key, "hash": _hash(x), "about": about})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._make_room(len(content)):
                self._give_up(
                    f"the cache of {self._name} has no room for more than {human(sum((self._sizes or {}).values()))} in"
                    f" {self.folder}"
                )
                return False
            with writing(self._path(key)) as f:
                f.write(content)
        except OSError as e:
            self._give_up(f"the cache of {self._name} could not be written ({(e.strerror or str(e)).lower()})")
            return False
        self._used.add(key)
        assert self._sizes is not None
        self._sizes[key] = len(content)
        return True

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{ENTRY}"

    def _give_up(self, why: str) -> None:
        self._full = True
        self.warn(f"{why}, so what is missing in it is encoded anew each time")

    def _make_room(self, size: int) -> bool:
        if self._sizes is None:
            sweep_unfinished(self.folder)
            entries: list[CacheEntry[None]] = list_entries(self.folder, ENTRY, lambda path: None)
            self._sizes = {entry.path.stem: entry.size for entry in reversed(entries)}
        total = sum(self._sizes.values())
        old = {self._path(key): size for key, size in self._sizes.items() if key not in self._used}
        deleted = make_room(old, total + size - budget(self.folder, self._cap, total))
        for path in deleted or []:
            del self._sizes[path.stem]
        return deleted is not None

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as e:
            self.warn(f"{path} could not be deleted: {e.strerror or e}")


def _hash(x: torch.Tensor) -> str:
    return hashlib.blake2b(x.contiguous().view(-1).view(torch.uint8).numpy().data, digest_size=16).hexdigest()
