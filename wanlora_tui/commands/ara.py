"""ara: build an accuracy recovery adapter for a quantized base, in a process that has torch."""

import os
import sys
from argparse import Namespace


def ara(args: Namespace) -> int:
    """Become the builder: its output and its exit code are the command's own."""
    line = [args.model, "--rank", str(args.rank), "--precision", args.precision, "--expert", args.expert]
    line += ["--clips", str(args.clips)] if args.clips else []
    line += ["--out", str(args.out)] if args.out else []
    line += ["--full"] if args.full else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "engine.recovery", *line])
