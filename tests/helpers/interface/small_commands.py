"""What tests/test_commands.py lets the server of commands fork: small mains, and what they tell of themselves."""

import json
import os
import signal
import sys
from pathlib import Path


def tell() -> int:
    """What is around it."""
    facts = {
        "arguments": sys.argv[1:],
        "program": sys.orig_argv,
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
        "path": sys.path,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())) - 1,  # without the one that lists them
        "signals": [signal.getsignal(n) == signal.default_int_handler for n in (signal.SIGINT,)]
        + [signal.getsignal(n) == signal.SIG_DFL for n in (signal.SIGCHLD, signal.SIGTERM)],
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "encodings": [(s.encoding, s.errors, s.name) for s in (sys.stdin, sys.stdout, sys.stderr)],
    }
    print(json.dumps(facts))
    print("talk", file=sys.stderr)
    return 3


def fail() -> int:
    print("begun")
    raise RuntimeError("of the command")


def leave() -> int:
    sys.exit("why")


def copy() -> int:
    sys.stdout.write(sys.stdin.read().upper())
    return 0


def hold() -> int:
    try:
        print("here", flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    return 0


def kill_its_parent() -> int:
    os.kill(os.getppid(), signal.SIGKILL)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(tell())
