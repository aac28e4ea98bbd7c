"""The end of `make test`: what failed there runs once more, alone: `python -m tests.again PYTEST'S_EXIT_CODE`.

A test that passes now has failed for its company: the machine's load, or what other tests left. That is a fault too,
and is printed as one, but it does not keep 8,000 others from being believed. More than a few failures are never that.
"""

import json
import subprocess
import sys
from pathlib import Path

FEW = 3
FAILED = Path(".pytest_cache/v/cache/lastfailed")  # pytest's own record, which `make test` begins empty
SOME_FAILED = 1  # pytest's exit code; others are of no single test


def main(code: int) -> int:
    if code != SOME_FAILED or not 1 <= len(failed := sorted(json.loads(FAILED.read_text()))) <= FEW:
        return code
    alone = [sys.executable, "-m", "pytest", "-n", "0", "--last-failed", "--last-failed-no-failures", "none"]
    print(f"\nOnce more, alone: {', '.join(failed)}", flush=True)
    code = subprocess.run(alone, check=False).returncode
    if not code:
        print("Failed among the others and passed alone. To be mended all the same:", *failed, sep="\n  ")
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
