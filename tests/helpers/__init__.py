"""What tests share: files, servers and stand-ins made for them, and waiting."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
NO_GPUS = ROOT / "tests/helpers/no_gpus"  # put first into PYTHONPATH: a machine without GPUs, whatever it has
