"""A program of its own, not a module to import: becomes another that ends when its parent does, even by kill -9.

    python death_signal.py PARENT_PID PROGRAM ARGUMENT...

Linux sends the signal when the thread that started us ends. Elsewhere ssh sees the end of its standard input.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != int(sys.argv[1]):  # it has ended meanwhile
            sys.exit(1)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as e:
        print(f"{sys.argv[2]}: {e.strerror}", file=sys.stderr)
        sys.exit(127)
