"""Has films decoded in a thread, what is looked at first, and holds no more of them than fits a bound."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

from wanlora_tui.film.decoding import MOST, Reel, read_reel

CAP = 160 * 2**20  # bytes of all frames that are held
TELL_SECONDS = 0.1  # between two words that there is more of a film
AGAIN_SECONDS = 2.0  # until a film that had a problem is looked at anew
Key = tuple[Path, int, tuple[int, int]]


class Projector:
    """`changed` is called, in its thread, when there is more to see."""

    def __init__(self, changed: Callable[[], None], cap: int = CAP) -> None:
        self._changed, self._cap = changed, cap
        self._reels: OrderedDict[Key, Reel] = OrderedDict()  # the one asked for last is last
        self._failed: dict[Key, float] = {}  # when
        self._queue: list[Reel] = []
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._told = 0.0

    def reel(self, path: Path, box: tuple[int, int], aspect: float = 1.0) -> Reel:
        """The film at this size, which fills as it is decoded. A file that has been written anew is another film."""
        try:
            key = (path, path.stat().st_mtime_ns, box)
        except OSError:
            key = (path, 0, box)
        with self._lock:
            reel = self._reels.get(key)
            if reel is not None and reel.problem and reel.whole:
                failed = self._failed.setdefault(key, time.monotonic())
                if time.monotonic() - failed > AGAIN_SECONDS:
                    reel = None
            if reel is None and not self._closed:
                self._failed.pop(key, None)
                reel = Reel(path, box, aspect)
                self._reels[key] = reel
                self._queue.append(reel)
                self._make_room()
                self._begin()
            elif reel is None:
                return Reel(path, box, aspect)
            self._reels.move_to_end(key)
            return reel

    def only(self, wanted: Collection[Reel]) -> None:
        """Nobody looks at any other: what is not whole of those is given up at once."""
        with self._lock:
            for key, reel in list(self._reels.items()):
                if not reel.whole and not any(reel is w for w in wanted):
                    reel.unwanted = True
                    del self._reels[key]
            self._queue = [reel for reel in self._queue if not reel.unwanted]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for reel in self._reels.values():
                reel.unwanted = True
            self._reels.clear()
            self._queue.clear()
            self._lock.notify()

    def _begin(self) -> None:
        self._lock.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="projector")
            self._thread.start()

    def _make_room(self) -> None:
        """What was looked at longest ago goes first."""
        held = sum(reel.nbytes for reel in self._reels.values())
        for key, reel in list(self._reels.items()):
            if held <= self._cap:
                break
            if reel.whole:
                held -= reel.nbytes
                del self._reels[key]

    # --- in its thread -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not self._closed:
                    self._lock.wait()
                if self._closed:
                    return
                reel = self._queue.pop(0)
            read_reel(reel, self._tell, min(MOST, self._cap // 2))
            with self._lock:
                self._make_room()
                told = not self._closed and not reel.unwanted
            if told:
                self._changed()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told > TELL_SECONDS:
            self._told = now
            self._changed()
