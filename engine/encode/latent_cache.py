"""Latents of images, encoded once and kept on disk: what a step needs of a batch, from the cache or from its pixels.

Only single frames that are the same at each visit are kept: images, and the first frame of a clip. An image is its own
first frame, so its conditioning is the mask and its latents once more, and one tensor per image says all. The files are
engine.encode.tensor_cache's.

B batch, C channels, h w latent sides.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import msgspec
import torch

from engine.data.dataset import Item
from engine.data.frames import DecodeRequest, Frames, decode
from engine.data.loader import Batch
from engine.data.sampler import SampleDraw
from engine.encode.latents import Encoder, encode, encode_pair, pixels, with_mask
from engine.encode.tensor_cache import TensorCache, key_of, machinery
from engine.system.placement import Placement
from engine.system.progress import Progress, seldom
from presets.errors import UserError
from presets.job.schema import Job
from presets.machine.limits import cores

FORMAT = 4  # a change to what is decoded or encoded is another number
AHEAD = 8  # images decoded before they are encoded


class LatentCache:
    """The cached latents of one run. `fill` it before step 1; what is damaged later is made again when it is drawn."""

    def __init__(
        self,
        job: Job,
        items: Iterable[Item],
        cache: TensorCache,
        placement: Placement,
        *,
        vae: str,
        how: str,
    ) -> None:
        """`vae` is the identity of the VAE's weights, `how` names the way it is run."""
        wanted = [item for item in items if job.datasets[item.dataset].cache_latents and item.bucket.frames == 1]
        self._requests = list(dict.fromkeys(r for item in wanted for r in _requests(item)))
        self._moving = sum(not _same_each_time(item) for item in wanted)
        self._cache, self._device = cache, placement.device
        self._fixed = vae, how, machinery(placement)
        self._keys: dict[DecodeRequest, str] = {}  # of what the cache holds

    def holds(self, draw: SampleDraw) -> bool:
        """Whether the draw's pixels are not needed."""
        return _plain(draw.request) in self._keys

    def fill(self, encoder: Encoder, progress: Progress) -> int:
        """Encode what is not there yet; returns how many images were. Raises UserError for an image that cannot be
        read."""
        if self._moving:
            self._cache.warn(
                'cache_latents: frames that sampling = "realtime" draws at another moment each time are encoded anew'
                " each time"
            )
        requests, progress = self._requests, seldom(progress)
        digests = _digests({r.path for r in requests})
        keys = {
            r: key_of(
                "latents",
                FORMAT,
                *self._fixed,
                digests[r.path],
                *msgspec.structs.astuple(msgspec.structs.replace(r, path="")),
            )
            for r in requests
        }
        missing = []
        for done, request in enumerate(requests):
            progress(done, 2 * len(requests), "latents")
            if self._cache.get(keys[request]) is None:
                missing.append(request)
            else:
                self._keys[request] = keys[request]
        for done, (request, frames) in enumerate(_decoded(missing)):
            progress(2 * len(requests) - len(missing) + done, 2 * len(requests), "latents")
            if not self._keep(keys[request], request, self._encoded(encoder, frames)):
                break  # no room: what is left is encoded when it is drawn
            self._keys[request] = keys[request]
        progress(2 * len(requests), 2 * len(requests), "latents")
        return len(missing)

    def latents(self, encoder: Encoder, draw: SampleDraw) -> torch.Tensor:
        """(1, 16, 1, h, w) of a draw that it holds, on the device."""
        request = _plain(draw.request)
        x0 = self._cache.get(self._keys[request])
        if x0 is None:
            x0 = self._encoded(encoder, decode(request))
            self._keep(self._keys[request], request, x0)
        return x0.to(self._device)

    def _encoded(self, encoder: Encoder, frames: Frames) -> torch.Tensor:
        return encode(encoder, pixels(frames[None], device=self._device))

    def _keep(self, key: str, request: DecodeRequest, x0: torch.Tensor) -> bool:
        flips = "".join(
            f" {name}" for name, on in (("flipped in x", request.flip_x), ("flipped in y", request.flip_y)) if on
        )
        return self._cache.put(key, x0, f"{request.path} {request.bucket.height}x{request.bucket.width}{flips}")


def latents_of(
    encoder: Encoder, batch: Batch, cache: LatentCache | None, *, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents (B, 16, F, h, w), conditioning (B, 20, F, h, w)) of a batch. Images go one at a time, so that each gets
    the same bits in any company."""
    if batch.bucket.frames > 1:
        last_rows = [i for i, draw in enumerate(batch.draws) if draw.last_frame]
        return encode_pair(encoder, pixels(batch.frames, device=device), last_rows)
    each = [
        (
            cache.latents(encoder, draw)
            if cache is not None and cache.holds(draw)
            else encode(encoder, pixels(batch.frames[i : i + 1], device=device))
        )
        for i, draw in enumerate(batch.draws)
    ]
    x0 = torch.cat(each)
    return x0, with_mask(x0)


def _same_each_time(item: Item) -> bool:
    return item.kind == "image" or item.sampling == "uniform" or item.window_start is not None


def _requests(item: Item) -> Iterator[DecodeRequest]:
    """Every way in which the item can be drawn."""
    if _same_each_time(item):
        for flip_x, flip_y in product((False, True)[: 1 + item.flip_x], (False, True)[: 1 + item.flip_y]):
            start = item.window_start or 0.0
            yield DecodeRequest(item.path, item.kind, item.bucket, item.sampling, start, flip_x, flip_y, item.hdr)


def _plain(request: DecodeRequest) -> DecodeRequest:
    """Without the start of a window, which an image has not."""
    return (
        msgspec.structs.replace(request, start=0.0)
        if request.kind == "image" or request.sampling == "uniform"
        else request
    )


def _threads() -> int:
    return min(4, cores())


def _digests(paths: set[str]) -> dict[str, str]:
    with ThreadPoolExecutor(_threads()) as pool:
        return dict(zip(paths, pool.map(_digest, paths), strict=True))


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as f:
            return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as e:
        raise UserError(
            f"cannot be read ({(e.strerror or str(e)).lower()})",
            where=path,
            fix="Put it back, or take it out of the dataset and start again",
        ) from None


def _decoded(requests: list[DecodeRequest]) -> Iterator[tuple[DecodeRequest, Frames]]:
    """Each request with its frames, in order, a few decoded ahead. Raises ClipError."""
    todo, under_way = iter(requests), deque[tuple[DecodeRequest, Future[Frames]]]()
    pool = ThreadPoolExecutor(_threads(), thread_name_prefix="images")
    try:
        while True:
            while len(under_way) < AHEAD and (request := next(todo, None)) is not None:
                under_way.append((request, pool.submit(decode, request)))
            if not under_way:
                return
            request, future = under_way.popleft()
            yield request, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
