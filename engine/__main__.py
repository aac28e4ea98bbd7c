"""`python -m engine JOB.toml [--out DIR] [--resume]`: train one job, complete by itself.

Kept light: the data workers import this module again when they start.
"""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine", description="Train one job. Exit codes: 0 done, 1 failed, 2 usage, 75 saved and can be resumed.")
    parser.add_argument("job", type=Path, metavar="JOB.toml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the run folder goes (default: the folder `runs` beside the job file)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    args = parser.parse_args(argv)

    from engine.run import run_job

    return run_job(args.job, args.out, resume=args.resume)


if __name__ == "__main__":
    sys.exit(main())
