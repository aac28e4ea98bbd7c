"""A command without a terminal ends when whoever started it from afar does: their end of its standard input closes.

With a terminal, that hangs up or brings Ctrl+C by itself.
"""

import os
import select
import signal

LOOK_SECONDS = 1.0  # until it is noticed that the command has ended by itself


def put_on_leash() -> None:
    """From now on the end of standard input interrupts this process and those that it starts, as Ctrl+C would; the
    command itself reads nothing. It holds for a program that this process becomes, too."""
    command = os.getpid()
    if os.getpgrp() != command:  # a shell that waits for us in our group would be interrupted, too
        os.setpgid(0, 0)
    leash = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if os.fork():
        os.close(leash)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # ssh waits until nobody can write to these any more
        os.dup2(nothing, stream)
    while os.getppid() == command:
        if select.select([leash], [], [], LOOK_SECONDS)[0] and not os.read(leash, 4096):
            if os.getppid() == command:
                os.killpg(command, signal.SIGINT)
            break
    os._exit(0)
