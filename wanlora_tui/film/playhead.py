"""Which frame is due: a position on a clock, which any number of films are shown at. Nothing here decodes or draws."""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence

NEAR = 1e-3  # seconds: times of frames are rounded, in files and in sums


def frame_at(times: Sequence[float], seconds: float) -> int:
    """The frame shown at a time; the first before it, the last behind it."""
    return max(0, bisect_right(times, seconds + NEAR) - 1)


class Playhead:
    """Plays round and round the longest film it has been given. Late or seldom asked, it says the frame of now: frames
    are dropped, time is not stretched."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: Sequence[float] = (0.0,)
        self.duration = 0.0  # seconds
        self.moved = False  # somebody has played or stepped: until then posters are shown
        self.playing = False
        self._at = 0.0  # seconds, at `_since`
        self._since: float | None = None  # by the clock, while it runs
        self._asked: int | None = None  # the frame that was gone to before there was a film; from the end below 0

    def load(self, times: Sequence[float], duration: float) -> None:
        """Play a film of this length: seconds of each frame, and when the last one ends."""
        at = self.seconds
        self._times, self.duration = times, duration
        self._at = at % duration if duration else 0.0
        if self._asked is not None:
            self._at, self._asked = times[self._asked % len(times)], None
        if self._since is not None:
            self._since = self._clock()

    @property
    def frames(self) -> int:
        return len(self._times)

    @property
    def seconds(self) -> float:
        """Where it is now."""
        if self._since is None or not self.duration:
            return self._at
        return (self._at + self._clock() - self._since) % self.duration

    @property
    def frame(self) -> int:
        return frame_at(self._times, self.seconds)

    @property
    def wait(self) -> float:
        """Seconds until the next frame is due."""
        now, after = self.seconds, self.frame + 1
        return max(0.0, (self._times[after] if after < len(self._times) else self.duration) - now)

    def toggle(self) -> None:
        """Play, or pause."""
        at = self.seconds
        self.playing, self.moved = not self.playing, True
        self._at, self._since = at, self._clock() if self.playing else None

    def hold(self) -> None:
        """Stand still while nobody can look, without a pause."""
        self._at, self._since = self.seconds, None

    def run_on(self) -> None:
        if self.playing and self._since is None:
            self._since = self._clock()

    def step(self, by: int) -> None:
        """Pause, that many frames on; round at the ends."""
        if self.duration:
            self.seek((self.frame + by) % len(self._times))
        else:
            self._go((self._asked or 0) + by)

    def seek(self, frame: int) -> None:
        """Pause at a frame; -1 is the last."""
        self._go(frame)

    def _go(self, frame: int) -> None:
        self.playing, self.moved, self._since = False, True, None
        if self.duration:
            self._at = self._times[min(frame, len(self._times) - 1)]
        else:
            self._asked = frame

    def reset(self) -> None:
        """Back to the posters."""
        self.playing = self.moved = False
        self._at, self._since, self._asked = 0.0, None, None
