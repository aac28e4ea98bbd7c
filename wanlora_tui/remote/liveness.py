"""Whether a line still answers: pure, told what came and when.

What is done about it is wanlora_tui.remote.connection's."""

PING_SECONDS = 1.0  # between an answer and the next question
SILENT_SECONDS = 3.0  # without an answer
# The same until another line is dialled beside it, and where that one is up by then: a network that has carried a whole
# handshake meanwhile would have carried the answer.
DOUBT_SECONDS, BEATEN_SECONDS = 1.0, 2.0
PATIENCE = 3  # times as long as answers took of late is no reason to doubt
EASING = 0.9  # by which a slow answer counts less with each that follows
WOKEN_SECONDS = 1.0  # the same after a sleep of this machine: most lines are gone then
GAP_SECONDS = 3.0  # between two looks that should follow at once: this machine, or this process, has slept
BUSY_BYTES = 2048  # a second: a line that brings as much is not silent, its answers wait behind other things


class Liveness:
    """Of one line, on a clock in seconds that goes on while the machine sleeps."""

    def __init__(self, now: float) -> None:
        self._looked = self._sign = self._counted = now
        self._asked = 0.0
        self._pending, self._echoed, self._received, self._took = False, 0, 0, 0.0
        self._limit = SILENT_SECONDS

    def look(self, now: float, echoed: int, received: int) -> None:
        """`echoed`: answers so far; `received`: bytes so far that the line has brought, as far as that is known."""
        if now - self._looked > GAP_SECONDS:  # what was asked before it may have been lost with the network
            self._limit, self._sign = WOKEN_SECONDS, now
        self._looked = now
        if echoed > self._echoed:
            self._took = max(now - self._asked if self._pending else 0.0, EASING * self._took)
            self._pending, self._limit = False, SILENT_SECONDS
        if echoed > self._echoed or received - self._received >= BUSY_BYTES or not self._pending:
            self._sign = now
        if echoed > self._echoed or now - self._counted >= 1:
            self._echoed, self._received, self._counted = echoed, received, now

    def wants_ping(self, now: float) -> bool:
        """Whether it is time to ask; True means that it is done."""
        if self._pending or now - self._asked < PING_SECONDS:
            return False
        self._pending, self._asked, self._sign = True, now, now
        return True

    def silent_for(self, now: float, *, beside: bool = False) -> float:
        """Seconds since the last sign of life, 0 while that is no silence. `beside`: another line has come up since."""
        silent = self._waited(now)
        limit = min(self._limit, max(BEATEN_SECONDS, PATIENCE * self._took)) if beside else self._limit
        return silent if silent >= limit else 0.0

    def is_doubtful(self, now: float) -> bool:
        """Whether another line should be at hand."""
        return self._waited(now) >= max(DOUBT_SECONDS, PATIENCE * self._took)

    def _waited(self, now: float) -> float:
        return now - self._sign if self._pending else 0.0
