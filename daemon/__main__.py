"""`python -m daemon [--dir DIR]`: serve in the foreground until SIGTERM or Ctrl-C. Trainers outlive it.

What it serves is daemon.server's; clients start it by daemon.wire.start.
"""

import argparse
import logging
import sys
from pathlib import Path

from daemon.server import serve
from daemon.wire.paths import daemon_paths
from presets.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Exit 0 when asked to end, 1 when it could not serve."""
    parser = argparse.ArgumentParser(
        prog="python -m daemon",
        description="Queue, launch and watch training jobs. Ends on SIGTERM or Ctrl-C; trainers keep running.",
    )
    parser.add_argument(
        "--dir", type=Path, help="directory for the sockets and the job table, instead of the user's own"
    )
    parser.add_argument(
        "--trainer",
        nargs=argparse.REMAINDER,
        metavar="ARG",
        help=(
            "the command that trains a job, for tests and other launchers; takes all that follows, and is given JOB"
            " --out DIR [--resume [--from STEP] [--accept-changes]]"
        ),
    )
    options = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve(daemon_paths(options.dir), options.trainer or None)
    except UserError as e:
        print(f"wanlora daemon: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
