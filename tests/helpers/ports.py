"""Ports of this machine for what a test starts."""

import random
import socket
from contextlib import ExitStack

# below those that the kernel gives to whoever connects: it would give them away before they are used
GIVEN = range(12_000, 32_000)


def free_port(neighbours: int = 0) -> int:
    """One that nobody uses, nor so many after it."""
    while True:
        port = random.SystemRandom().choice(GIVEN)
        with ExitStack() as held:
            try:
                for n in range(neighbours + 1):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port + n))
            except OSError:
                continue
            return port
