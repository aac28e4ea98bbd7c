"""`python -m daemon [--dir DIR]`: serve in the foreground until SIGTERM or Ctrl-C. Trainers outlive it.

What it serves is daemon.server's; clients start it by daemon.wire.start.
"""

import argparse
import logging
import sys
from pathlib import Path

from daemon.log_file import LogFile
from daemon.server import serve
from daemon.settings import settings_file
from daemon.wire.paths import daemon_paths, make_private
from presets.errors import UserError
from presets.file_names import require_home
from presets.files import share_no_writing
from presets.text import escape_output


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
        "--log", action="store_true", help="say everything in the log of the state folder, for a service manager"
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
    escape_output()
    share_no_writing()
    options = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        require_home()
        paths = daemon_paths(options.dir)
        make_private(paths.state)
        log_file = LogFile(paths.log, take_over=options.log)
        serve(paths, log_file, options.trainer or None, settings_file(options.dir))
    except UserError as e:
        print(f"wanlora daemon: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
