"""Files of the Hub from its content-addressed storage (Xet), through the package hf_xet: the only module that talks to
it.

A file comes as a stream of bytes from any position on, so that what is here already is kept, whichever way it came.
hf_xet fetches a file's chunks from several places at once, those it has seen before from its own cache. Where it fails,
the download goes on by plain HTTP, which is `engine.weights.hub_transfer`'s, as is the file that the bytes go into.
"""

import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

STALLED = 60.0  # seconds without a byte; hf_xet tries again by itself, for minutes


class XetFailed(Exception):
    """Why hf_xet does not go on."""


class XetStorage:
    """hf_xet as one download uses it, from several threads. Once it has failed it is left alone, and `say` is told."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._lock = say, threading.Lock()
        self.usable = not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None
        self._session: Any = None
        self._waiting: dict[int, float] = {}  # thread -> since when it waits for bytes

    def stream(self, file: Any, size: int, *, begin: int, url: str, headers: dict[str, str]) -> Iterator[bytes]:
        """The bytes of a file from `begin` to its end. `file` is huggingface_hub's XetFileData, `headers` are those for
        the Hub, `url` the file's own there. Raises XetFailed."""
        try:
            import hf_xet

            plain = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            ours = urlsplit(file.refresh_route).netloc == urlsplit(url).netloc  # the token is for the Hub alone
            self._wait()
            group = self._opened(hf_xet).new_download_stream_group(
                token_refresh_url=file.refresh_route,
                token_refresh_headers=headers if ours else plain,
                custom_headers=plain,
            )
            came = begin
            pieces = iter(group.download_stream(hf_xet.XetFileInfo(file.file_hash, size), start=begin))
            while (piece := next(pieces, None)) is not None:
                came += len(piece)
                yield piece
                self._wait()
            if came != size:
                raise XetFailed(f"it ended after {came} of {size} bytes")
        except (XetFailed, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # a panic in its Rust is no Exception
            raise XetFailed(str(e).strip().partition("\n")[0] or type(e).__name__) from e
        finally:
            with self._lock:
                self._waiting.pop(threading.get_ident(), None)

    def give_up(self, why: str) -> None:
        """Leave hf_xet alone from now on; said once."""
        with self._lock:
            first, self.usable = self.usable, False
        if first:
            self._say(f"the Hub's Xet storage failed ({why}): the download goes on by plain HTTP from where it is")

    def cancel(self) -> None:
        """End all that is under way: its readers find it too short."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.sigint_abort()  # of all its cancellations the one that wakes a waiting reader

    def end_stalled(self) -> None:
        """Give up when nothing has come for long."""
        with self._lock:
            stalled = any(since < time.monotonic() - STALLED for since in self._waiting.values())
        if stalled:
            self.give_up(f"nothing came for {STALLED:.0f} s")
            self.cancel()

    def _opened(self, hf_xet: Any) -> Any:
        with self._lock:
            if self._session is None:
                self._session = hf_xet.XetSession()
            return self._session

    def _wait(self) -> None:
        with self._lock:
            self._waiting[threading.get_ident()] = time.monotonic()
