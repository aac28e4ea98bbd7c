"""What tests share: files, servers and stand-ins made for them, and waiting."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
SOME_GPUS = ROOT / "tests/helpers/some_gpus"  # the same: one with the GPUs that a file names
NO_GPUS = ROOT / "tests/helpers/no_gpus"  # put first into PYTHONPATH: a machine without GPUs, whatever it has
NO_TORCH = ROOT / "tests/helpers/no_torch"  # put first there: torch is not installed
# A trainer compiles nothing on a CPU. Where bitsandbytes is installed, torch loads its compiler all the same, for what
# that decorates as it is imported, unless it is told so: more than a second of each trainer's start.
UNCOMPILED = {"TORCHDYNAMO_DISABLE": "1"}
